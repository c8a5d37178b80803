"""The faults of a bad day: what happens to a server, and how it ends."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import MODEL_FILE
from tests.chaos.day_server import DayServer

_WORKERS = ("--workers", "2")
_DEVICE = (*_WORKERS, "--device-process")

# As root, files cannot be made unreadable without this.
_WITHOUT_ROOTS_PRIVILEGE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
_PRIVATE_TMP = ("unshare", "--map-root-user", "--mount", "sh", "-c")
_MOUNT = 'mount -t tmpfs -o size=64k none /tmp && exec "$@"'

# The folder of the model `other` hangs as soon as the file `hang-other` exists, or the repository itself:
# no file system here can do that.
_HANGING = """
import sys, time
from pathlib import Path
from serving.bundle.repository import Repository
versions, model_folders = Repository.versions, Repository.model_folders
def wait(self, name):
    while (self.root.parent / f"hang-{name}").exists():
        time.sleep(0.1)
def hang(self, model):
    wait(self, model)
    return versions(self, model)
def hang_whole(self):
    wait(self, "repository")
    return model_folders(self)
Repository.versions, Repository.model_folders = hang, hang_whole
from serving.cli import main
sys.exit(main(sys.argv[4:]))
"""

# A small file system for the log, which goes on from there to the pipe.
_DISK = "disk"
_SMALL_DISK = """
mkdir -p "$0" && mount -t tmpfs -o size=1m none "$0" && : > "$0/log"
(tail -f --pid=$$ "$0/log" >&2 &)
exec "$@" 2>> "$0/log"
"""

_CLOCK_SOURCE = Path(__file__).with_name("clock_shift.c")


def _nothing(_server: DayServer) -> None:
    """Nothing has to be done."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    name: str
    does: str
    strike: Callable[[DayServer], None]
    metric: str  # shows it: the beginning of a line of /metrics
    end: Callable[[DayServer], None] = _nothing
    options: Sequence[str] = ()
    wrapper: Callable[[Path], Sequence[str]] = lambda _: ()  # of the command, from the folder of the server
    needs: tuple[str, ...] = ()  # programs


def all_faults() -> dict[str, Fault]:
    """Every fault by its name, in the order of the table."""
    return {each.name: each for each in _FAULTS}


def _send(number: signal.Signals, child: int) -> Callable[[DayServer], None]:
    return lambda server: os.kill(server.children()[child], number)


def _pause(server: DayServer) -> None:
    for pid in (server.process.pid, *server.children()):
        os.kill(pid, signal.SIGSTOP)


def _resume(server: DayServer) -> None:
    for pid in (server.process.pid, *server.children()):
        os.kill(pid, signal.SIGCONT)


def _in_its_namespace(server: DayServer, path: Path) -> Path:
    return Path(f"/proc/{server.process.pid}/root") / path.relative_to("/")


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filled:
        try:
            while True:
                filled.write(bytes(4096))
        except OSError:
            return


def _fill_tmp(server: DayServer) -> None:
    _fill(_in_its_namespace(server, Path("/tmp/fill")))  # noqa: S108 - of the server alone


def _disk_file(server: DayServer) -> Path:
    return _in_its_namespace(server, server.repository.root.parent / _DISK / "fill")


def _refuse_memory(child: int) -> Callable[[DayServer], None]:
    """Let a process allocate no more than it has, and publish a version, for which it needs memory."""

    def refuse(server: DayServer) -> None:
        pid = server.children()[child]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
        server.publish()

    return refuse


def _give_memory(server: DayServer) -> None:
    for pid in server.children():
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def _move(name: str) -> Callable[[DayServer], None]:
    def move(server: DayServer) -> None:
        root = server.repository.root
        root.rename(root.with_name("away"))
        if name == "empty":
            root.mkdir()

    return move


def _move_back(server: DayServer) -> None:
    root = server.repository.root
    shutil.rmtree(root, ignore_errors=True)
    root.with_name("away").rename(root)


def _chmod(mode: int, model: str = ".") -> Callable[[DayServer], None]:
    return lambda server: (server.repository.root / model).chmod(mode)


def _damage_and_kill(server: DayServer) -> None:
    """Damage the served version of a model, and kill a worker: its successor can only load the one before."""
    model_file = server.repository.folder("other", 2) / MODEL_FILE
    model_file.write_bytes(model_file.read_bytes()[::-1])
    os.kill(server.children()[0], signal.SIGKILL)


def _touch(name: str) -> Callable[[DayServer], None]:
    return lambda server: (server.repository.root.parent / name).touch()


def _remove(name: str) -> Callable[[DayServer], None]:
    return lambda server: (server.repository.root.parent / name).unlink()


def _hanging(_folder: Path) -> Sequence[str]:
    return (sys.executable, "-c", _HANGING)


def _clock(folder: Path) -> Sequence[str]:
    """Build a library that shifts the wall clock by the seconds in a file, and preload it."""
    library = folder / "clock_shift.so"
    (folder / "shift").write_text("0\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, _CLOCK_SOURCE, "-ldl"], check=True)
    return ("env", f"LD_PRELOAD={library}", f"CLOCK_SHIFT_FILE={folder / 'shift'}")


def _shift(seconds: int) -> Callable[[DayServer], None]:
    def shift(server: DayServer) -> None:
        (server.repository.root.parent / "shift").write_text(f"{seconds}\n")

    return shift


def _unprivileged(_folder: Path) -> Sequence[str]:
    return _WITHOUT_ROOTS_PRIVILEGE if os.geteuid() == 0 else ()


_FAULTS = (
    Fault(
        "worker-killed",
        "SIGKILL for one of two workers, as of the kernel's out-of-memory killer",
        _send(signal.SIGKILL, 0),
        "lenserve_worker_deaths_total",
        options=_WORKERS,
    ),
    Fault(
        "worker-stopped",
        "SIGSTOP for one of two workers: it hangs",
        _send(signal.SIGSTOP, 0),
        "lenserve_worker_hangs_total",
        options=_WORKERS,
    ),
    Fault(
        "version-damaged",
        "the served version of one model is damaged, and one of two workers killed",
        _damage_and_kill,
        "lenserve_worker_ready",
        options=_WORKERS,
    ),
    Fault(
        "worker-out-of-memory",
        "one of two workers gets no more memory (RLIMIT_AS) for 6 s, while a version is published",
        _refuse_memory(0),
        "lenserve_version_load_failures_total",
        end=_give_memory,
        options=_WORKERS,
    ),
    Fault(
        "device-server-killed",
        "SIGKILL for the device server of two workers",
        _send(signal.SIGKILL, 2),
        "lenserve_worker_deaths_total",
        options=_DEVICE,
    ),
    Fault(
        "device-server-stopped",
        "SIGSTOP for the device server of two workers: it hangs",
        _send(signal.SIGSTOP, 2),
        "lenserve_worker_hangs_total",
        options=_DEVICE,
    ),
    Fault(
        "device-server-out-of-memory",
        "the device server gets no more memory (RLIMIT_AS) for 6 s, while a version is published",
        _refuse_memory(2),
        "lenserve_version_load_failures_total",
        end=_give_memory,
        options=_DEVICE,
    ),
    Fault(
        "paused",
        "SIGSTOP for all processes of two workers for 6 s, as when a container is paused",
        _pause,
        "lenserve_event_loop_lag_seconds",
        end=_resume,
        options=_WORKERS,
    ),
    Fault(
        "tmp-full",
        "`/tmp` is full, with two workers",
        _fill_tmp,
        "lenserve_requests_total",
        options=_WORKERS,
        wrapper=lambda _: (*_PRIVATE_TMP, _MOUNT, "sh"),
        needs=("unshare",),
    ),
    Fault(
        "disk-full",
        "the log is a file, 160 lines a second, on a file system that is full for 6 s",
        lambda server: _fill(_disk_file(server)),
        "lenserve_dropped_log_lines_total",
        end=lambda server: _disk_file(server).unlink(),
        options=("--access-log-sample", "1"),
        wrapper=lambda folder: (*_PRIVATE_TMP, _SMALL_DISK, str(folder / _DISK)),
        needs=("unshare", "tail"),
    ),
    Fault(
        "log-unread",
        "the log is not read: the pipe is full, 160 lines a second",
        DayServer.stop_reading_log,
        "lenserve_dropped_log_lines_total",
        options=("--access-log-sample", "1"),
    ),
    Fault(
        "log-reader-gone",
        "the reader of the log has closed the pipe",
        DayServer.close_log,
        "lenserve_dropped_log_lines_total",
        options=("--access-log-sample", "1"),
    ),
    Fault(
        "repository-unreadable",
        "no permission to read the repository, for 6 s",
        _chmod(0),
        "lenserve_repository_problems",
        end=_chmod(0o755),
        wrapper=_unprivileged,
        needs=("setpriv",),
    ),
    Fault(
        "model-unreadable",
        "no permission to read the folder of one model, for 6 s",
        _chmod(0, "other"),
        "lenserve_repository_problems",
        end=_chmod(0o755, "other"),
        wrapper=_unprivileged,
        needs=("setpriv",),
    ),
    Fault(
        "model-hangs",
        "reading the folder of one model does not end, for 6 s",
        _touch("hang-other"),
        "lenserve_repository_problems",
        end=_remove("hang-other"),
        wrapper=_hanging,
    ),
    Fault(
        "repository-hangs",
        "reading the repository does not end, for 6 s",
        _touch("hang-repository"),
        "lenserve_repository_problems",
        end=_remove("hang-repository"),
        wrapper=_hanging,
    ),
    Fault(
        "repository-empty",
        "the repository is an empty folder, as when a mount fell away, for 6 s",
        _move("empty"),
        "lenserve_repository_problems",
        end=_move_back,
    ),
    Fault(
        "repository-gone",
        "the repository does not exist, for 6 s",
        _move("gone"),
        "lenserve_repository_problems",
        end=_move_back,
    ),
    Fault(
        "clock-forward",
        "the wall clock jumps forward by an hour",
        _shift(3600),
        "lenserve_last_run_timestamp_seconds",
        wrapper=_clock,
        needs=("cc",),
    ),
    Fault(
        "clock-back",
        "the wall clock jumps back by an hour",
        _shift(-3600),
        "lenserve_last_run_timestamp_seconds",
        wrapper=_clock,
        needs=("cc",),
    ),
)
