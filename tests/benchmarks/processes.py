"""A server process pinned to cores: its CPU time and memory over the whole process tree, from /proc."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOP_TIMEOUT_S = 10

# Of a virtual machine: how long an idle core waits for work before it halts. 200 µs is Linux's own value.
_HALT_POLL_FILE = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
_HALT_POLL_NS = "200000"

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES = CORES[:1]
CLIENT_CORES = CORES[-1:]


class Process:
    """A running server and whatever it started. A class because it must be stopped, all of it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cores: Sequence[int] = SERVER_CORES,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,  # that it runs in
    ) -> None:
        self.log = log
        self._command = command
        with log.open("wb") as file, pinned(cores):  # a child starts where its parent is
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def check_running(self) -> None:
        """End with the last lines of its log if it has stopped by itself."""
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise SystemExit(f"{self._command} ended with {self._process.returncode}:\n{tail}")

    def cpu_s(self) -> float:
        """User and system time so far, of all processes and of those that have ended and were waited for."""
        return tree_cpu_s(self._process.pid)

    def resident_mib(self) -> float:
        """Resident memory; pages that several of its processes share count in each."""
        return sum(_resident_kib(pid) for pid in process_tree(self._process.pid)) / 1024

    def stop(self) -> None:
        """SIGTERM as an operator would, then SIGKILL to all that is left."""
        left = list(process_tree(self._process.pid))
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in left[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def tree_cpu_s(pid: int) -> float:
    """User and system time so far of this process, of those below it, and of those that have ended."""
    return sum(_cpu_ticks(each) for each in process_tree(pid)) / _TICKS_PER_S


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread, and the children it starts, on these cores for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def can_keep_cores_awake() -> bool:
    """Whether this is a virtual machine that lets us: most often only root may."""
    return os.access(_HALT_POLL_FILE, os.W_OK)


@contextmanager
def cores_kept_awake() -> Iterator[None]:
    """Let idle cores wait for a moment before they halt: to wake one that has halted is a hypercall."""
    before = _HALT_POLL_FILE.read_text()
    _HALT_POLL_FILE.write_text(_HALT_POLL_NS)
    try:
        yield
    finally:
        _HALT_POLL_FILE.write_text(before)


def calibration_ms() -> float:
    """CPU time of a fixed piece of pure Python on the server's core: how fast that core was just now."""
    with pinned(SERVER_CORES):
        started_s = time.thread_time()
        total = 0
        for number in range(200_000):
            total += number * number % 7
        return (time.thread_time() - started_s) * 1000


def process_tree(pid: int) -> Iterator[int]:
    """A process and all that descend from it, it first."""
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        yield each
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            waiting.extend(map(int, _read(children).split()))


def _cpu_ticks(pid: int) -> int:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5)


def _resident_kib(pid: int) -> int:
    lines = _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended since
