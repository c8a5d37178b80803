"""What a supervisor and a worker say to each other: lines of JSON, over the worker's stdin and stdout.

The supervisor says `Order` first and STOP at the end; that it has nothing to say any more means that it is
gone. The worker says `Report` at every change of what it reports, and ends when it is told to.
"""

from pathlib import Path

from serving.bundle.manifest import Strict
from serving.settings import ServerSettings

STOP = b"stop\n"


class Order(Strict):
    """What a worker is to be."""

    worker: int  # its number, 1..workers: its successor after a death has the same
    settings: ServerSettings
    owner: Path | None = None  # the Unix socket of the owner of the device, if that is not the worker itself
    listener: int | None = None  # for the owner: the descriptor of that socket, inherited
    seat: int | None = None  # where it is dealt connections, inherited too; else it listens itself


class Report(Strict):
    """How a worker is. The first one says that it takes connections."""

    ready: bool = False
    broken: bool = False  # an engine stopped working for good: only a new process can mend that
    models: tuple[str, ...] = ()  # MODEL@VERSION of what is served by default
    error: str = ""  # it could not start: the name of a class in serving.errors
    message: str = ""  # of that error


def line(message: Strict) -> bytes:
    """The message as it is sent."""
    return message.model_dump_json().encode() + b"\n"
