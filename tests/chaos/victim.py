"""The server that is attacked: a separate process on the first core, with a small model and a token."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np

from serving.bundle import Description, Repository
from serving.pb.inference import grpc_service_pb2 as pb
from tests.benchmarks.processes import Process
from tests.benchmarks.servers import events
from tests.colours import SIDE, write_colours

MODEL = "colours"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
TOKEN = "a-token-of-the-good-client"  # noqa: S105 - of a test
_STARTING_S = 60.0
_POLL_S = 0.01
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ANSWER_S = 10.0


def small_request() -> bytes:
    """A message of METHOD: one red image."""
    pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)  # (N, H, W, C)
    pixels[..., 0] = 255
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    message = pb.ModelInferRequest(model_name=MODEL, inputs=[tensor], raw_input_contents=[pixels.tobytes()])
    serialized: bytes = message.SerializeToString()
    return serialized


class Victim:
    """A running server: its port, its memory, and whether it still answers."""

    def __init__(self, process: Process, port: int) -> None:
        self.port = port
        self._process = process
        self._folder = Path(f"/proc/{process.pid}")

    def resident_mib(self) -> float:
        """Resident memory now."""
        return self._status_mib("VmRSS")

    def peak_mib(self) -> float:
        """The largest resident memory since `reset_peak`."""
        return self._status_mib("VmHWM")

    def reset_peak(self) -> None:
        """Forget the peak so far: proc(5), clear_refs."""
        (self._folder / "clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """User and system time so far."""
        return self._process.cpu_s()

    def cpu_of_threads_s(self) -> dict[str, float]:
        """User and system time so far of each thread, by its number."""
        found = {}
        for folder in (self._folder / "task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[folder.name] = sum(map(int, fields[11:13])) / _TICKS_PER_S  # proc(5)
        return found

    def answers(self) -> bool:
        """Whether a new client gets an answer."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            try:
                channel.unary_unary(METHOD)(
                    small_request(), timeout=_ANSWER_S, metadata=(("authorization", f"Bearer {TOKEN}"),)
                )
            except grpc.RpcError:
                return False
        return True

    def _status_mib(self, key: str) -> float:
        try:
            text = (self._folder / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0  # it has ended
        return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(key)), 0.0)


def write_small(folder: Path) -> Description:
    """Write the files of a model whose run takes some microseconds."""
    return write_colours(folder, rotate=0, lie=False)


@contextmanager
def running(
    folder: Path, options: Sequence[str] = (), *, write: Callable[[Path], Description] = write_small
) -> Iterator[Victim]:
    """Run `lenserve serve` with a token file, until the end of the block.

    Args:
        folder: where its repository, its tokens and its log are.
        options: of the command.
        write: writes the files of the model, if there is no repository.
    """
    repository = Repository(folder / "repository")
    if not repository.root.exists():
        repository.root.mkdir(parents=True)
        repository.publish(MODEL, write)
        (folder / "tokens.toml").write_text(f'[tokens]\n"{TOKEN}" = ["*"]\n')
    log = folder / "server.log"
    command = [sys.executable, "-m", "serving.cli", "serve", "--repository", str(repository.root)]
    command += ["--grpc-port", "0", "--http-port", "0", "--log-json", "--drain-timeout-s", "0"]
    process = Process([*command, "--token-file", str(folder / "tokens.toml"), *options], log=log)
    try:
        yield Victim(process, _port(process, log))
    finally:
        process.stop()


def _port(process: Process, log: Path) -> int:
    """The port of gRPC, when the server is ready."""
    late_s = time.monotonic() + _STARTING_S
    while time.monotonic() < late_s:
        process.check_running()
        seen = events(log)
        if "ready" in seen:
            return int(seen["listening"]["grpc"].rpartition(":")[2])
        time.sleep(_POLL_S)
    raise SystemExit(f"the server was not ready after {_STARTING_S} s: see {log}")
