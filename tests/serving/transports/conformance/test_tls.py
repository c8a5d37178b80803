"""TLS and mutual TLS, with certificates made by a fixture."""

from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from serving.transports.tls import TlsFiles
from tests.serving.transports.conformance.methods import Channels
from tests.serving.transports.conformance.served import Serve, Served

HELLO = BytesValue(value=b"hello")


async def test_a_client_that_trusts_the_authority_is_served(serve: Serve, certificates: Path) -> None:
    """Unary calls and streams."""
    async with serve(tls=_files(certificates)) as served, _channel(served, certificates) as channel:
        say = channel.unary_unary("/tests.Echo/Say", BytesValue.SerializeToString, BytesValue.FromString)
        assert await say(HELLO) == HELLO
        each = channel.stream_stream("/tests.Echo/Each", BytesValue.SerializeToString, BytesValue.FromString)
        assert [answer async for answer in each(iter([HELLO] * 3))] == [HELLO] * 3


async def test_a_client_that_trusts_another_authority_fails(serve: Serve, certificates: Path) -> None:
    """It rejects the server's certificate."""
    async with (
        serve(tls=_files(certificates)) as served,
        _channel(served, certificates, authority="other-ca") as channel,
    ):
        assert await _code(channel) is grpc.StatusCode.UNAVAILABLE


async def test_a_client_without_tls_fails(serve: Serve, channels: Channels, certificates: Path) -> None:
    """TLS cannot be bypassed."""
    async with serve(tls=_files(certificates)) as served:
        assert await _code(channels(served).channel) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("client", "code"),
    [("client", "OK"), ("other-client", "UNAVAILABLE"), (None, "UNAVAILABLE")],
    ids=["ours", "of another authority", "without a certificate"],
)
async def test_mutual_tls_accepts_only_certificates_of_the_authority(
    serve: Serve, certificates: Path, client: str | None, code: str
) -> None:
    """No function is called for other clients."""
    files = TlsFiles(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    async with serve(tls=files) as served, _channel(served, certificates, client=client) as channel:
        assert (await _code(channel)).name == code
        assert served.echo.calls["say"] == (1 if code == "OK" else 0)


def _files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "server.pem", folder / "server.key")


def _channel(
    served: Served, folder: Path, *, authority: str = "ca", client: str | None = None
) -> grpc.aio.Channel:
    chain = (folder / f"{client}.pem").read_bytes() if client else None
    key = (folder / f"{client}.key").read_bytes() if client else None
    credentials = grpc.ssl_channel_credentials((folder / f"{authority}.pem").read_bytes(), key, chain)
    return grpc.aio.secure_channel(f"localhost:{served.server.port}", credentials)


async def _code(channel: grpc.aio.Channel) -> grpc.StatusCode:
    say = channel.unary_unary("/tests.Echo/Say", BytesValue.SerializeToString, BytesValue.FromString)
    code: grpc.StatusCode = await say(HELLO, timeout=10).code()
    return code
