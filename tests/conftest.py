"""Fixtures for all tests: real data, a repository, servers."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from serving.bundle import (
    Bundle,
    Repository,
)
from serving.server import Server, run_server
from serving.settings import ServerSettings
from tests.colours import Publish, write_colours
from tests.servers import HangLoad, Serve, ServerProcess, StartServer

DATA_VARIABLE = "LENSERVE_TEST_DATA"
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two ports of 127.0.0.1 on which nobody listened a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get(DATA_VARIABLE, DEFAULT_DATA)).resolve()
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real data: {folder} has no MNIST/raw (set {DATA_VARIABLE})")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty repository."""
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository")


@pytest.fixture
def publish(repository: Repository) -> Publish:
    """Publish into the test's repository."""

    def publish_version(model: str = "colours", *, rotate: int = 0, lie: bool = False) -> Bundle:
        return repository.publish(model, lambda folder: write_colours(folder, rotate=rotate, lie=lie))

    return publish_version


@pytest.fixture
def serve(repository: Repository) -> Serve:
    """Run a server on free ports of 127.0.0.1, ready when it is entered."""

    @asynccontextmanager
    async def running(**options: object) -> AsyncIterator[Server]:
        settings = ServerSettings(
            **{
                "repository": repository.root,
                "grpc_port": 0,
                "http_port": 0,
                "poll_interval_s": 0.05,
                **options,
            }
        )
        async with run_server(settings) as server:
            await server.models.scanned()
            yield server

    return running


@pytest.fixture
def start_server(repository: Repository) -> Iterator[StartServer]:
    """Start servers on free ports, which end with the test."""
    started: list[ServerProcess] = []

    def start(*options: str, code: str | None = None, ready_within_s: float = 60) -> ServerProcess:
        program = ["-m", "serving.cli"] if code is None else ["-c", code]
        arguments = ["serve", "--repository", str(repository.root), "--grpc-port", "0", "--http-port", "0"]
        command = [sys.executable, *program, *arguments, "--log-json", *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        server = ServerProcess(process)
        started.append(server)
        server.reader = threading.Thread(target=server.read, daemon=True)
        server.reader.start()
        server.wait_for("ready", timeout_s=ready_within_s)
        assert process.poll() is None, server.log
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()
        if server.reader is not None:
            server.reader.join()
        assert server.process.stderr is not None
        server.process.stderr.close()


@pytest.fixture
def hang_load(repository: Repository) -> HangLoad:
    """Publish a version that never ends loading, and wait until a server loads it."""

    def hang(server: ServerProcess) -> None:
        bundle = repository.publish(
            "colours", lambda folder: write_colours(folder, rotate=0, lie=False, endless=True)
        )
        server.wait_for("version_loading", version=bundle.version)

    return hang


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PEM files: two authorities, ca and other-ca, and what they signed for this machine.

    NAME.pem and NAME.key: server and client are signed by ca, other-client by other-ca.
    """
    # Only tests of TLS need the library behind it, which a bare GPU machine lacks.
    from tests.certificates import write_certificate  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("certificates")
    for authority, names in (("ca", ("server", "client")), ("other-ca", ("other-client",))):
        signer = write_certificate(folder, authority)
        for name in names:
            write_certificate(folder, name, signer)
    return folder
