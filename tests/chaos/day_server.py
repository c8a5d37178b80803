"""A server that has a bad day: `lenserve serve` with two models, the pipe of its log, and its processes."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from serving.bundle import Repository
from tests.colours import write_colours

MODELS = ("colours", "other")
_STARTS_WITHIN_S = 120.0
_LOOK_S = 0.05


class DayServer:
    """A running server, and the ways to reach it. Its log is read until `stop_reading_log`."""

    def __init__(self, process: subprocess.Popen[bytes], log: int, pipe: int, repository: Repository) -> None:
        """Store the options.

        Args:
            process: the supervisor, or the only process.
            log: the end of the pipe that is read.
            pipe: the end that the server writes to.
            repository: what it serves.
        """
        self.process = process
        self.repository = repository
        self.events: list[dict[str, object]] = []
        self._log, self._pipe = log, pipe
        self._reads = True
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC."""
        return str(self._listening["grpc"])

    @property
    def http(self) -> str:
        """HOST:PORT of probes and metrics."""
        return str(self._listening["http"])

    @property
    def _listening(self) -> dict[str, object]:
        return next(each for each in self.events if each.get("event") == "listening" and "http" in each)

    def wait_until_ready(self) -> None:
        """Wait for the event `ready`."""
        late_s = time.monotonic() + _STARTS_WITHIN_S
        while not any(each.get("event") == "ready" for each in list(self.events)):
            if time.monotonic() > late_s or self.process.poll() is not None:
                raise SystemExit(f"the server did not become ready: {self.events[-5:]}")
            time.sleep(_LOOK_S)

    def children(self) -> list[int]:
        """Process ids of the workers, then of the device server, in the order of their start."""
        pid = self.process.pid
        return sorted(int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def publish(self, model: str = MODELS[1], *, rotate: int = 0) -> None:
        """Publish a version; with `rotate`, it gives wrong labels."""
        self.repository.publish(model, partial(write_colours, rotate=rotate, lie=False))

    def stop_reading_log(self) -> None:
        """Stop reading the pipe: it fills up."""
        self._reads = False
        self._reader.join()

    def close_log(self) -> None:
        """Close the pipe: what the server writes fails."""
        self.stop_reading_log()
        os.close(self._log)
        os.close(self._pipe)
        self._log = self._pipe = -1

    def stop(self) -> None:
        """End it, whatever its state."""
        self._reads = False
        for pid in (*self.children(), self.process.pid) if self.process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        for descriptor in (self._log, self._pipe):
            if descriptor >= 0:
                os.close(descriptor)

    def _read_log(self) -> None:
        rest = b""
        while self._reads:
            if select.select([self._log], [], [], _LOOK_S)[0]:
                *lines, rest = (rest + os.read(self._log, 2**16)).split(b"\n")
                for line in lines:
                    with suppress(json.JSONDecodeError):  # of a full disk, which took a part of it
                        self.events += [json.loads(line)] if line.startswith(b"{") else []


@contextmanager
def day_server(folder: Path, options: Sequence[str], wrapper: Sequence[str] = ()) -> Iterator[DayServer]:
    """Run a server until the end of the block.

    Args:
        folder: a new folder for its repository.
        options: of `lenserve serve`.
        wrapper: the beginning of a command that runs it.
    """
    repository = Repository(folder / "repository")
    shutil.rmtree(repository.root, ignore_errors=True)
    repository.root.mkdir(parents=True)
    for model in MODELS:
        for rotate in (1, 0):  # the version before gives wrong labels
            repository.publish(model, partial(write_colours, rotate=rotate, lie=False))
    log, pipe = os.pipe()
    command = [*wrapper, sys.executable, "-m", "serving.cli", "serve", "--repository", str(repository.root)]
    command += ["--grpc-port", "0", "--http-port", "0", "--log-json", "--poll-interval-s", "0.5", *options]
    process = subprocess.Popen(command, stderr=pipe)
    server = DayServer(process, log, pipe, repository)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
