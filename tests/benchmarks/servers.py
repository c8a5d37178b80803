"""Our server and its peers: how each is started, as a good engineer would configure it for one core."""

import json
import os
import shutil
import socket
import string
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import Bundle
from tests.benchmarks.networks import FOLDER, peer_network
from tests.benchmarks.processes import SERVER_CORES, Process

_PEERS = Path(".peers/bench").resolve()
_SCRIPTS = (Path(__file__).parent / "peers").resolve()
_STARTING_TIMEOUT_S = 60
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    process: Process
    port: int
    cores: Sequence[int] = tuple(SERVER_CORES)
    http_port: int = 0  # of ours: /metrics and probes


Start = Callable[[Bundle], Server]


def start_lenserve(
    bundle: Bundle,
    options: Sequence[str] = (),
    *,
    cores: Sequence[int] = SERVER_CORES,
    checkout: Path | None = None,
) -> Server:
    """`lenserve serve`, ready to answer.

    Args:
        bundle: what it serves, alone in its repository.
        options: of the command.
        cores: the CPUs it may use.
        checkout: another working tree of this project whose code runs instead of this one's.
    """
    repository = str(bundle.folder.parents[1].resolve())
    command = [sys.executable, "-m", "serving.cli", "serve", "--repository", repository, "--log-json"]
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / f"lenserve-{bundle.model}{'-other' if checkout else ''}.log"
    command += ["--grpc-port", "0", "--http-port", "0", *options]
    process = Process(command, log=log, cores=cores, folder=checkout)
    wait_until(lambda: "ready" in events(log), process)
    listening = events(log)["listening"]
    return Server(process, _port(listening["grpc"]), cores, _port(listening["http"]))


def start_tutorial(bundle: Bundle) -> Server:
    """grpcio, eight threads, one ONNX Runtime run a request."""
    port = _free_port()
    command = [_python("tutorial"), str(_SCRIPTS / "tutorial.py"), str(peer_network(bundle).resolve())]
    process = Process([*command, str(port)], log=FOLDER / f"tutorial-{bundle.model}.log")
    return _listening(process, port)


def start_h2corn(bundle: Bundle) -> Server:
    """Our own application on h2corn, with this project's environment."""
    log = FOLDER / f"h2corn-{bundle.model}.log"
    packages = next((_PEERS / "h2corn").glob("lib/python3*/site-packages"))
    command = [sys.executable, str(_SCRIPTS / "h2corn_server.py"), str(bundle.folder.parents[1])]
    process = Process(command, log=log, environment={"PYTHONPATH": f".:{packages}"})
    wait_until(lambda: _printed_port(log), process)
    return Server(process, _printed_port(log))


def start_mosec(bundle: Bundle) -> Server:
    """HTTP, raw bytes, batches of up to 32 within 1 ms."""
    port = _free_port()
    environment = {"MODEL": str(peer_network(bundle).resolve()), "PYTHONPATH": str(_SCRIPTS)}
    command = [_python("mosec"), str(_SCRIPTS / "mosec_server.py"), "--port", str(port)]
    command += ["--address", "127.0.0.1", "--log-level", "warning"]
    process = Process(command, log=FOLDER / f"mosec-{bundle.model}.log", environment=environment)
    return _listening(process, port)


def start_triton(bundle: Bundle) -> Server:
    """Triton with its Python backend: dynamic batching of up to 32 within 1 ms."""
    port = _free_port()
    package = next((_PEERS / "triton").glob("lib/python3*/site-packages/pytriton/tritonserver"))
    python_version = package.parents[2].name.removeprefix("python")
    stub = package / "python_backend_stubs" / python_version / "triton_python_backend_stub"
    backend = package / "backends" / "python"
    if not (backend / stub.name).exists():  # where Triton looks for it; a running one cannot be replaced
        shutil.copy2(stub, backend)
    command = [str(package / "bin" / "tritonserver"), f"--model-repository={_triton_repository(bundle)}"]
    command += [f"--backend-directory={package / 'backends'}", f"--grpc-port={port}"]
    command += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]
    command += ["--disable-auto-complete-config", "--log-verbose=0"]
    environment = {
        "PYTHONPATH": str(package.parents[1]),
        "PATH": f"{_PEERS / 'triton' / 'bin'}:{os.environ['PATH']}",
    }
    process = Process(command, log=FOLDER / f"triton-{bundle.model}.log", environment=environment)
    return _listening(process, port)


def wait_until(is_true: Callable[[], object], process: Process) -> None:
    """Ask again and again, while the process lives."""
    end_s = time.monotonic() + _STARTING_TIMEOUT_S
    while not is_true():
        process.check_running()
        if time.monotonic() > end_s:
            raise SystemExit(f"a server was not ready after {_STARTING_TIMEOUT_S} s: see {process.log}")
        time.sleep(_POLL_S)


def _triton_repository(bundle: Bundle) -> Path:
    root = (FOLDER / f"triton-{bundle.model}").resolve()
    version = root / bundle.model / "1"
    version.mkdir(parents=True, exist_ok=True)
    network, geometry = peer_network(bundle), bundle.manifest.geometry
    shutil.copyfile(network, version / "network.onnx")
    shutil.copyfile(_SCRIPTS / "triton_model.py", version / "model.py")
    shutil.copy(_SCRIPTS / "preparation.py", version)
    dims = f"[ {geometry.height}, {geometry.width}, {geometry.channels} ]"
    is_bundle = network == bundle.model_file
    template = string.Template((_SCRIPTS / "triton_config.pbtxt").read_text())
    config = template.substitute(
        NAME=bundle.model,
        INPUT=f"data_type: TYPE_UINT8, dims: {dims}" if is_bundle else "data_type: TYPE_STRING, dims: [ 1 ]",
        CLASSES=len(bundle.manifest.labels),
    )
    (version.parent / "config.pbtxt").write_text(config)
    return root


def _listening(process: Process, port: int) -> Server:
    wait_until(lambda: _accepts(port), process)
    return Server(process, port)


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def events(log: Path) -> dict[str, dict[str, str]]:
    """What a server of ours has logged itself, not its workers: name -> the last event of that name."""
    events = {}
    for line in log.read_text().splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            event = json.loads(line)
            if "worker" not in event:
                events[event["event"]] = event
    return events


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _printed_port(log: Path) -> int:
    """The port on the last line of a log, once that line is complete; else 0."""
    line = log.read_text().rpartition("\n")[0].rpartition("\n")[2]
    return int(line) if line.isdecimal() else 0


def _python(peer: str) -> str:
    return str(_PEERS / peer / "bin" / "python")
