"""Messages between the supervisor and a worker: lines of JSON on the worker's stdin and stdout.

The supervisor first sends one `WorkerCommand`, and STOP at the end; end of file means that the supervisor has
died. The worker sends a `WorkerReport` whenever its state changes, and a BEAT several times a second while
its event loop turns. It exits after STOP.
"""

from pathlib import Path

from serving.bundle.manifest import Strict
from serving.settings import ServerSettings

STOP = b"stop\n"
BEAT = b"\n"


class WorkerCommand(Strict):
    """The number and the settings of a worker."""

    worker: int  # 1..workers; a successor gets the same number. 0: the device server
    settings: ServerSettings
    counts: tuple[tuple[int, int], ...] = ()  # inherited memories of the counters of workers 1, 2, ...
    device_server: Path | None = None  # Unix socket of the device server; None: this worker runs the networks
    listener: int | None = None  # for the device server: the inherited descriptor of that Unix socket
    worker_socket: int | None = (
        None  # inherited descriptor that delivers connections; None: this worker listens
    )


class WorkerReport(Strict):
    """The state of a worker. The first report says that it accepts connections."""

    why_not_ready: str = ""
    why_broken: str = ""  # which engine is broken: only a new process can recover
    models: tuple[str, ...] = ()  # MODEL@VERSION of each default version
    error: str = ""  # why the worker could not start: name of a class in serving.errors
    message: str = ""  # message of that error


def to_line(message: Strict) -> bytes:
    """Encode a message as one line of JSON."""
    return message.model_dump_json().encode() + b"\n"
