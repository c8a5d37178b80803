"""Messages between the supervisor and a worker: lines of JSON over the worker's stdin and stdout.

The supervisor sends one `WorkerCommand` first and STOP at the end; end of file means that the supervisor is
gone. The worker sends a `WorkerReport` whenever its state changes, and ends after STOP.
"""

from pathlib import Path

from serving.bundle.manifest import Strict
from serving.settings import ServerSettings

STOP = b"stop\n"


class WorkerCommand(Strict):
    """Which worker this process is, and with which settings it serves."""

    worker: int  # 1..workers; a successor gets the same number. 0: the device server
    settings: ServerSettings
    device_server: Path | None = None  # its Unix socket; None: this worker runs the networks itself
    listener: int | None = None  # of the device server: the inherited descriptor of that Unix socket
    worker_socket: int | None = (
        None  # inherited descriptor that brings connections; None: this worker listens
    )


class WorkerReport(Strict):
    """The state of a worker. The first report means that it accepts connections."""

    ready: bool = False
    broken: bool = False  # an engine failed for good: only a new process can recover
    models: tuple[str, ...] = ()  # MODEL@VERSION of every default version
    error: str = ""  # the worker could not start: the name of a class in serving.errors
    message: str = ""  # of that error


def to_line(message: Strict) -> bytes:
    """Encode a message as one line of JSON."""
    return message.model_dump_json().encode() + b"\n"
