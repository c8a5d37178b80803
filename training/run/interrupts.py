"""SIGTERM, Ctrl-C, a closed terminal: the first signal stops the job at a safe point, the second at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from training.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """A flag that signals set and the job checks where it is safe to stop.

    The signal handler does not raise: libraries that catch all exceptions, such as the ONNX exporter, would
    swallow it.
    """

    def __init__(self, how_to_continue: str = "continue with the same command and --resume") -> None:
        """Start without a signal.

        Args:
            how_to_continue: last part of the message, for the user who stopped the job.
        """
        self.received: signal.Signals | None = None
        self._how_to_continue = how_to_continue

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Handle signals while the context is open, main thread only; SIGHUP unless `nohup` ignores it."""
        hears_hangup = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        handled = (*_SIGNALS, signal.SIGHUP) if hears_hangup else _SIGNALS
        previous = {number: signal.signal(number, self._receive) for number in handled}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def raise_if_stopped(self, saved: str) -> None:
        """Raise if a signal has been received.

        Args:
            saved: describes what is saved, for the message.

        Raises:
            Interrupted: a signal was received.
        """
        if self.received is not None:
            self.stop(saved)

    def stop(self, saved: str) -> NoReturn:
        """Raise `Interrupted`, also if another process of a distributed run received the signal."""
        by = "a signal to another process" if self.received is None else self.received.name
        raise Interrupted(f"stopped by {by}: {saved}; {self._how_to_continue}")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number)
        for again in _SIGNALS:
            signal.signal(again, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes sends it twice
