"""Fixtures for all tests: the real data, a small real network, and real servers that serve it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Bundle,
    Calibration,
    Description,
    Estimate,
    Evaluation,
    Geometry,
    Golden,
    Provenance,
    Repository,
    write_golden,
)
from serving.server import Server, run_server
from serving.settings import ServerSettings

DATA_VARIABLE = "LENSERVE_TEST_DATA"
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"

LABELS = ("red", "green", "blue")
SIDE = 8

Publish = Callable[..., Bundle]
Serve = Callable[..., AbstractAsyncContextManager[Server]]


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
    """Publish the next version of a network that names the strongest colour of an image.

    `rotate=1` makes a version that names the next colour instead; `lie=True` one whose golden
    probabilities are not its own.
    """

    def publish_version(model: str = "colours", *, rotate: int = 0, lie: bool = False) -> Bundle:
        return repository.publish(model, lambda folder: _write_colours(folder, rotate=rotate, lie=lie))

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


@dataclass
class ServerProcess:
    """A server in a process of its own, as an operator runs it. `log` grows while it runs."""

    process: subprocess.Popen[str]
    log: list[dict[str, object]] = field(default_factory=list)
    grown: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False  # there will be no more
    reader: threading.Thread | None = None

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC."""
        return str(self.event("listening")["grpc"])

    @property
    def http(self) -> str:
        """HOST:PORT of the probes and metrics."""
        return str(self.event("listening")["http"])

    def event(self, name: str) -> dict[str, object]:
        """The first event of that name in the log, of the server itself and not of one of its workers."""
        return next(self.events(name, worker=None))

    def events(self, name: str, **fields: object) -> Iterator[dict[str, object]]:
        """Every event of that name with these fields so far."""
        for event in list(self.log):
            if event.get("event") == name and all(event.get(key) == fields[key] for key in fields):
                yield event

    def wait_for(
        self, name: str, *, times: int = 1, timeout_s: float = 60, **fields: object
    ) -> list[dict[str, object]]:
        """Events of that name with these fields, once there are so many."""
        with self.grown:
            found = self.grown.wait_for(
                lambda: self.ended or len(list(self.events(name, **fields))) >= times, timeout=timeout_s
            )
            events = list(self.events(name, **fields))
        assert found, self.log
        assert len(events) >= times, self.log
        return events

    def read(self) -> None:
        """Keep what the process logs, to its end."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"text": line}  # no event of ours: a traceback, say
            with self.grown:
                self.log.append(event)
                self.grown.notify_all()
        with self.grown:
            self.ended = True
            self.grown.notify_all()

    def stop(self) -> int:
        """SIGTERM, wait, and the exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=30)
        assert self.reader is not None
        self.reader.join(timeout=30)
        return code


@pytest.fixture
def start_server(repository: Repository) -> Iterator[Callable[..., ServerProcess]]:
    """Start `lenserve serve` on free ports in a process of its own, and wait until it is ready.

    `code` is a Python program that runs instead of `-m serving.cli`, with the same arguments. A large
    repository needs more than the usual `ready_within_s`.
    """
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
def hang_load(repository: Repository) -> Iterator[Callable[[], None]]:
    """Put a version into the repository that never ends loading, and wait until somebody loads it."""
    with ExitStack() as stack:

        def hang() -> None:
            folder = repository.root / "colours" / ".hangs"
            folder.mkdir()
            os.mkfifo(folder / MANIFEST_FILE)  # who reads it waits for the rest of what we write: for ever
            folder = folder.rename(repository.folder("colours", 2))
            late_s = time.monotonic() + 20
            while (writer := _writer(folder / MANIFEST_FILE)) is None:
                assert time.monotonic() < late_s, "nobody loads it"
            stack.callback(os.close, writer)

        yield hang


def _writer(fifo: Path) -> int | None:
    """Open it for writing; None where nobody reads it."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


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


def _write_colours(folder: Path, *, rotate: int, lie: bool) -> Description:
    onnx.save(_colours_graph(rotate), folder / MODEL_FILE)
    images = np.zeros((3, SIDE, SIDE, 3), np.uint8)  # (3, H, W, C): pure red, green, blue
    images[range(3), :, :, range(3)] = 255
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"image": images})
    write_golden(Golden(images, np.roll(probabilities, int(lie), axis=1)), folder)
    assert (folder / GOLDEN_FILE).exists()
    return Description(
        labels=LABELS,
        geometry=Geometry(height=SIDE, width=SIDE, channels=3),
        embedding_size=3,
        calibration=Calibration(temperature=1, ece_before=0, ece_after=0),
        evaluation=Evaluation(images=3, correct=3, accuracy=Estimate(value=1, low=0.4, high=1), ece=0),
        provenance=Provenance(
            recipe="colours",
            recipe_digest="0" * 64,
            data_digest="0" * 64,
            created_at=datetime.now(UTC),
            framework="by hand",
            parameters=9,
        ),
    )


def _colours_graph(rotate: int) -> onnx.ModelProto:
    """Mean of each channel, then softmax(4 * mean / 255), the classes rotated."""
    weights = np.roll(np.eye(3, dtype=np.float32) * 4 / 255, rotate, axis=1)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["embedding"], keepdims=0),
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
