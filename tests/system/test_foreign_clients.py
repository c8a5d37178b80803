"""Clients and proxies of other makers: calls, streams, deadlines, cancels, and thousands of calls at once.

Each runs where it is installed, and skips with the reason elsewhere. `make chaos` sets
LENSERVE_FOREIGN_CALLS=4000; without it, bursts are smaller, and what must be compiled is left out.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.colours import SIDE, Publish
from tests.servers import ServerProcess, StartServer
from tests.system.foreign_clients import CLIENTS, COMPILED, Command, Missing
from tests.system.proxies import PROXIES

CALLS_VARIABLE = "LENSERVE_FOREIGN_CALLS"
CALLS = int(os.environ.get(CALLS_VARIABLE, "1100"))  # more than the streams that a connection may have open
CANCELLED, DEADLINE_EXCEEDED = 1, 4
UP_WITHIN_S = 20

Run = Callable[[str, str], Any]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Command]:
    """Return the command of a client, built once; skip if it is not on this machine."""
    known: dict[str, Command | str] = {}
    build = tmp_path_factory.mktemp("clients")

    def command(name: str) -> Command:
        if name not in known:
            try:
                known[name] = CLIENTS[name](build)
            except Missing as missing:
                known[name] = str(missing)
        found = known[name]
        if isinstance(found, str):
            pytest.skip(found)
        return found

    return command


@pytest.fixture(autouse=True)
def _in_the_suite_one_client_uses_proxies(request: pytest.FixtureRequest) -> None:
    """Skip the others before anything starts, unless this is `make chaos`."""
    client = request.node.callspec.params["client"]
    if CALLS_VARIABLE in os.environ:
        return
    if client in COMPILED:
        pytest.skip(f"{client} is compiled by `make chaos` alone, which sets {CALLS_VARIABLE}")
    if "proxy" in request.fixturenames and client != "grpcio":
        pytest.skip(f"{client} uses proxies in `make chaos` alone, which sets {CALLS_VARIABLE}")


@pytest.fixture
def server(publish: Publish, start_server: StartServer) -> ServerProcess:
    """A server that admits as many images as there are calls."""
    publish()
    return start_server("--max-pending-images", "4096")


@pytest.fixture
def run(commands: Callable[[str], Command], server: ServerProcess, tmp_path: Path) -> Run:
    """Run a client against an address, and read its report."""
    _write_messages(server.grpc, tmp_path)

    def run_client(name: str, address: str) -> Any:  # noqa: ANN401 - JSON
        done = subprocess.run(
            [*commands(name), address, tmp_path, str(CALLS)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_client


def _write_messages(address: str, folder: Path) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (SIDE, SIDE, 3), np.uint8)  # (H, W, C)
    image = pb.Image(pixels=pb.Pixels(height=SIDE, width=SIDE, channels=3, data=pixels.tobytes()))
    request = pb.ClassifyRequest(model="colours", images=[image]).SerializeToString()
    in_stream = pb.ClassifyRequest(model="colours", images=[image], id="7").SerializeToString()
    with grpc.insecure_channel(address) as channel:
        answer = channel.unary_unary("/lenserve.v1.Classifier/Classify")(request, timeout=30)
        calls = channel.stream_stream("/lenserve.v1.Classifier/ClassifyStream")
        (streamed,) = calls(iter([in_stream]), timeout=30)
    assert len(pb.ClassifyResponse.FromString(answer).predictions[0].ranking.labels) == 3
    files = {"request": request, "answer": answer, "stream-request": in_stream, "stream-answer": streamed}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    np.save(folder / "pixels.npy", pixels[np.newaxis])


def _check(report: Any) -> None:  # noqa: ANN401 - JSON
    assert (report["unary"], report["after"]) == ("OK", "OK"), report
    assert report["stream"] == {"OK": CALLS // 10}, report
    assert report["burst"] == {"OK": CALLS}, report
    codes = {kind: report[kind].partition(":")[0].rpartition(".")[2] for kind in ("late", "cancelled")}
    assert codes["late"] in (str(DEADLINE_EXCEEDED), "DEADLINE_EXCEEDED"), report
    assert codes["cancelled"] in (str(CANCELLED), "CANCELLED"), report


@pytest.mark.parametrize("client", CLIENTS)
def test_a_foreign_client_completes_everything(run: Run, server: ServerProcess, client: str) -> None:
    """Every answer is right byte by byte, and none of the calls that begin at once is refused."""
    _check(run(client, server.grpc))


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_completes_everything_through_a_proxy(
    run: Run, server: ServerProcess, tmp_path: Path, client: str, proxy: str
) -> None:
    """As without it."""
    with _running(proxy, tmp_path, server=int(server.grpc.rpartition(":")[2])) as port:
        _check(run(client, f"127.0.0.1:{port}"))


@contextmanager
def _running(proxy: str, folder: Path, *, server: int) -> Iterator[int]:
    """Run a proxy on a port that nobody used a moment ago; yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    try:
        command = PROXIES[proxy](folder, port, server)
    except Missing as missing:
        pytest.skip(str(missing))
    with ExitStack() as stack:
        log = stack.enter_context((folder / "proxy.log").open("w"))
        process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        stack.callback(process.terminate)
        _wait_until_up(process, port, folder / "proxy.log")
        yield port


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    late_s = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < late_s:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)  # nothing tells when a proxy listens
        else:
            return
    raise AssertionError(f"{process.args!r} does not listen: {log.read_text()}")
