"""SIGTERM and Ctrl-C: the first asks the job to save and leave, the second ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from training.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """A flag that signals set and the job looks at where it is safe to leave.

    A class because the flag outlives any one call. An error raised by the signal handler itself would be
    swallowed by libraries that catch everything, as the ONNX exporter does.
    """

    def __init__(self, how_to_continue: str = "go on with the same command and --resume") -> None:
        """Begin before any signal.

        Args:
            how_to_continue: what whoever stopped the job is told to do.
        """
        self.received: signal.Signals | None = None
        self._how_to_continue = how_to_continue

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Catch the signals in here; main thread only."""
        previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def raise_if_stopped(self, saved: str) -> None:
        """Raise where somebody asked the job to stop.

        Args:
            saved: what is kept, for the message.

        Raises:
            Interrupted: by which the job leaves.
        """
        if self.received is not None:
            self.stop(saved)

    def stop(self, saved: str) -> NoReturn:
        """Raise, asked here or, where several processes train together, at another one."""
        by = "another process's signal" if self.received is None else self.received.name
        raise Interrupted(f"stopped by {by}: {saved}; {self._how_to_continue}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        for again in _SIGNALS:
            signal.signal(again, signal.SIG_DFL)
