"""Tokens and certificates are renewed without a restart; a broken file changes nothing."""

import asyncio
import socket
import ssl
import threading
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from serving.errors import UsageError
from serving.pb.inference import grpc_service_pb2 as oip
from serving.rpc.bearer_tokens import hash_token
from serving.transports.changed_files import ChangedFiles
from tests.certificates import Signer, write_certificate
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.log_events import LogEvents
from tests.serving.stub import Connect, Stub
from tests.serving.until import until

METADATA = "inference.GRPCInferenceService/ServerMetadata"


def _events(log: LogEvents, name: str) -> int:
    return sum(record.getMessage() == name for record in log.records)


def test_contents_decide_and_a_failure_is_tried_again(tmp_path: Path, log_events: LogEvents) -> None:
    """Touching is no change; a failure is logged once, and what works again is loaded."""
    file = tmp_path / "file"
    file.write_text("1")
    loads: list[str] = []

    def load() -> None:
        loads.append(file.read_text())
        if loads[-1] == "broken":
            raise UsageError("it is broken")

    watched = ChangedFiles([file], load)
    watched.look()
    file.touch()
    watched.look()
    assert loads == []
    file.write_text("broken")
    for _ in range(3):
        watched.look()
    file.unlink()
    watched.look()
    file.write_text("2")
    watched.look()
    watched.look()

    assert loads == ["broken"] * 3 + ["2"]
    messages = [record.getMessage() for record in log_events.records]
    assert messages == ["files_not_reloaded"] * 2 + ["files_reloaded"]  # broken, missing, loaded
    assert log_events.records[0].reason == "it is broken"


async def test_tokens_are_exchanged_as_kubernetes_does(
    publish: Publish, serve: Serve, connect: Connect, tmp_path: Path, log_events: LogEvents
) -> None:
    """A symbolic link to a folder is replaced. A broken file leaves the tokens as they were."""
    publish()
    link = tmp_path / "data"

    def mount(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens.toml").write_text(text)
        (tmp_path / "new").symlink_to(tmp_path / name)
        (tmp_path / "new").replace(link)

    async def codes(stub: Stub) -> dict[str, str]:
        found = {}
        for token in ("old", "new"):
            call = stub.start(
                METADATA, oip.ServerMetadataRequest(), metadata=[("authorization", f"Bearer {token}")]
            )
            found[token] = (await call.code()).name
        return found

    mount("first", f'[tokens]\n"{hash_token("old")}" = ["*"]\n')
    async with serve(token_file=link / "tokens.toml") as server:
        stub = connect(server.grpc.port)
        assert await codes(stub) == {"old": "OK", "new": "UNAUTHENTICATED"}
        mount("broken", "[tokens")
        await until(lambda: _events(log_events, "files_not_reloaded") == 1)
        assert await codes(stub) == {"old": "OK", "new": "UNAUTHENTICATED"}
        mount("second", f'[tokens]\n"{hash_token("new")}" = ["*"]\n')
        await until(lambda: _events(log_events, "files_reloaded") == 1)
        assert await codes(stub) == {"old": "UNAUTHENTICATED", "new": "OK"}


def _serial(port: int, folder: Path, client: str) -> int | None:
    """The serial number of the server's certificate; None if the server rejects the client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            if not connection.recv(1):
                return None
            certificate = connection.getpeercert(binary_form=True)
    except (ssl.SSLError, ConnectionError):
        return None
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


@pytest.mark.parametrize("transport", ["h2", "grpc"])
async def test_certificates_are_renewed(
    transport: str, publish: Publish, serve: Serve, tmp_path: Path, log_events: LogEvents
) -> None:
    """Certificate, key and authority of clients; open connections go on, and a wrong key changes nothing."""
    publish()

    def authority(name: str) -> Signer:
        return write_certificate(tmp_path, name)

    old, new = authority("old-ca"), authority("new-ca")
    for name, signer in (("server", old), ("old-client", old), ("new-client", new)):
        write_certificate(tmp_path, name, signer)
    (tmp_path / "clients.pem").write_bytes((tmp_path / "old-ca.pem").read_bytes())
    files = {
        "tls_cert_file": tmp_path / "server.pem",
        "tls_key_file": tmp_path / "server.key",
        "tls_client_ca_file": tmp_path / "clients.pem",
    }

    async def serial(client: str) -> int | None:
        return await asyncio.to_thread(_serial, server.grpc.port, tmp_path, client)

    async with serve(transport=transport, **files) as server:
        first = await serial("old-client")
        assert first is not None
        assert await serial("new-client") is None
        credentials = grpc.ssl_channel_credentials(
            (tmp_path / "old-ca.pem").read_bytes(),
            (tmp_path / "old-client.key").read_bytes(),
            (tmp_path / "old-client.pem").read_bytes(),
        )
        async with grpc.aio.secure_channel(f"localhost:{server.grpc.port}", credentials) as channel:
            open_stub = Stub(channel)
            await open_stub.call(METADATA, oip.ServerMetadataRequest())

            (tmp_path / "server.key").write_bytes((tmp_path / "new-client.key").read_bytes())
            await until(lambda: _events(log_events, "files_not_reloaded") == 1)
            assert await serial("old-client") == first

            write_certificate(tmp_path, "server", new)
            (tmp_path / "clients.pem").write_bytes((tmp_path / "new-ca.pem").read_bytes())
            second = None
            for _ in range(500):  # a look may come between the changes
                second = await serial("new-client")
                if second not in (None, first):
                    break
            await open_stub.call(METADATA, oip.ServerMetadataRequest())

        assert second not in (None, first)
        assert await serial("old-client") is None
        assert _events(log_events, "files_reloaded") >= 1


def test_a_look_does_not_wait_for_another_that_hangs(tmp_path: Path) -> None:
    """Its volume does not answer; SIGHUP would take a thread each time."""
    file, hangs, gate = tmp_path / "tokens.toml", threading.Event(), threading.Event()
    file.write_text("a")

    def reload() -> None:
        hangs.set()
        assert gate.wait(timeout=30)

    watched = ChangedFiles([file], reload)
    file.write_text("b")
    first = threading.Thread(target=watched.look)
    first.start()
    assert hangs.wait(timeout=30)
    watched.look()
    assert first.is_alive()
    gate.set()
    first.join()


async def test_files_are_watched_on_when_the_system_had_no_memory_for_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch would end for ever, and with it the renewal of tokens."""
    file, loads = tmp_path / "tokens.toml", list[bytes]()
    file.write_text("a")
    watched = ChangedFiles([file], lambda: loads.append(file.read_bytes()))
    file.write_text("b")
    start, failures = threading.Thread.start, iter((True,))

    def fail_once(thread: threading.Thread) -> None:
        if next(failures, False):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    watch = asyncio.create_task(watched.watch(0.001))
    await until(lambda: bool(loads))
    watch.cancel()
    assert next(failures, None) is None
