"""The base of both clients: channels with and without TLS."""

import asyncio
import codecs
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client.client import AsyncClient, CallFailed, Client
from serving.errors import UsageError
from serving.server import Server
from tests.colours import Publish
from tests.servers import Serve

RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)  # (H, W, 3) RGB


@pytest.fixture(params=["h2", "grpc"])
def serve_tls(request: pytest.FixtureRequest, publish: Publish, serve: Serve, certificates: Path) -> Serve:
    """A server that requires client certificates, over either transport."""
    publish()
    files = {"cert_file": "server.pem", "key_file": "server.key", "client_ca_file": "ca.pem"}

    @asynccontextmanager
    async def running(**more: object) -> AsyncIterator[Server]:
        options = {f"tls_{name}": certificates / file for name, file in files.items()}
        async with serve(transport=request.param, **options, **more) as server:
            yield server

    return running


def _shown(folder: Path, name: str) -> dict[str, Path]:
    return {
        "tls_ca_file": folder / "ca.pem",
        "tls_cert_file": folder / f"{name}.pem",
        "tls_key_file": folder / f"{name}.key",
    }


async def test_a_client_with_its_certificate_is_answered(serve_tls: Serve, certificates: Path) -> None:
    """The real server and our client over mutual TLS."""
    async with serve_tls() as server:
        files: dict[str, Any] = _shown(certificates, "client")
        async with AsyncClient(f"localhost:{server.grpc.port}", **files) as client:
            assert (await client.classify(RED, model="colours")).top.label == "red"


async def test_a_client_with_a_certificate_of_another_authority_is_rejected(
    serve_tls: Serve, certificates: Path
) -> None:
    """Also a client without TLS."""
    async with serve_tls() as server:
        for files in (_shown(certificates, "other-client"), {}):
            shown: dict[str, Any] = files
            async with AsyncClient(f"localhost:{server.grpc.port}", attempts=1, **shown) as client:
                with pytest.raises(CallFailed) as caught:
                    await client.classify(RED, model="colours")
                assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tls_ca_file": "nowhere.pem"}, r"nowhere\.pem cannot be read: No such file"),
        (
            {"tls_ca_file": "ca.pem", "tls_cert_file": "client.pem"},
            "set tls_cert_file and tls_key_file together",
        ),
        ({"tls_cert_file": "client.pem", "tls_key_file": "client.key"}, "and tls_ca_file with them"),
    ],
)
def test_unusable_files_are_reported_at_once(
    certificates: Path, kind: type[Client | AsyncClient], files: dict[str, str], message: str
) -> None:
    """The constructor raises."""
    paths: dict[str, Any] = {name: certificates / file for name, file in files.items()}
    with pytest.raises(UsageError, match=message):
        kind("localhost:1", **paths)


@pytest.mark.parametrize("transport", ["h2", "grpc"])
async def test_pem_files_may_begin_with_a_byte_order_mark(
    publish: Publish, serve: Serve, certificates: Path, tmp_path: Path, transport: str
) -> None:
    """Chains are joined in editors, and OpenSSL finds nothing after the mark. On both sides."""
    publish()
    for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + (certificates / name).read_bytes())
    files = {"cert_file": "server.pem", "key_file": "server.key", "client_ca_file": "ca.pem"}
    options = {f"tls_{name}": tmp_path / file for name, file in files.items()}
    shown: dict[str, Any] = _shown(tmp_path, "client")
    async with (
        serve(transport=transport, **options) as server,
        AsyncClient(f"localhost:{server.grpc.port}", **shown) as client,
    ):
        assert (await client.classify(RED, model="colours")).top.label == "red"


async def test_the_name_of_the_certificate_can_be_set(serve_tls: Serve, certificates: Path) -> None:
    """Where the address is no name of the certificate, as behind a forwarded port."""
    files: dict[str, Any] = _shown(certificates, "client")
    async with serve_tls(host="127.0.0.2") as server:
        address = f"127.0.0.2:{server.grpc.port}"
        async with AsyncClient(address, tls_server_name="localhost", **files) as client:
            assert (await client.classify(RED, model="colours")).top.label == "red"
        started_s = time.monotonic()
        async with AsyncClient(address, tls_server_name="elsewhere", **files) as client:
            with pytest.raises(CallFailed, match="UNAVAILABLE"):
                await client.classify(RED, model="colours")
        assert time.monotonic() - started_s < 10  # of 30: a wrong name is not tried again
    with pytest.raises(UsageError, match="tls_server_name 'localhost' needs TLS: set tls_ca_file with it"):
        AsyncClient(tls_server_name="localhost")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_proxy_of_the_environment_does_not_get_calls_to_this_machine(
    publish: Publish, serve: Serve, monkeypatch: pytest.MonkeyPatch, kind: type[Client | AsyncClient]
) -> None:
    """Without a no_proxy too: the proxy is another machine."""
    publish()
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    async with serve() as server:
        for host in ("127.0.0.1", "localhost"):
            client = kind(f"{host}:{server.grpc.port}", timeout_s=5)
            if isinstance(client, AsyncClient):
                async with client:
                    result = await client.classify(RED, model="colours")
            else:
                with client:
                    result = await asyncio.to_thread(client.classify, RED, model="colours")
            assert result.top.label == "red"
