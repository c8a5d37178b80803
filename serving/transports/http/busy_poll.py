"""Busy polling: the event loop keeps turning for a moment when the next request is likely to come at once.

A process that sleeps and is woken continues with cold caches. That costs about as much CPU as polling does,
and adds latency. The loop polls for a client that has one request in flight and sends the next one as soon as
it has its answer. Once such a request does not come in time, the loop sleeps until the next one does.
"""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 0.0002


class BusyPoll:
    """Counts the requests that run, and keeps an event loop turning."""

    __slots__ = ("_call_soon", "_idle_since_s", "_is_likely", "_is_polling", "_now", "_running")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], object]], object] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without requests.

        Args:
            call_soon: calls a function in the next turn of the event loop; by default of the running one.
            now: seconds, on a monotonic clock.
        """
        self._call_soon = call_soon or asyncio.get_running_loop().call_soon
        self._now = now
        self._running = 0
        self._idle_since_s = float("-inf")
        self._is_likely = False  # the next request comes within the limit
        self._is_polling = False

    def begin(self) -> None:
        """A request begins."""
        self._running += 1
        self._is_likely = self._running == 1 and self._now() - self._idle_since_s < LIMIT_S

    def end(self) -> None:
        """A request has ended."""
        self._running -= 1
        if not self._running:
            self._idle_since_s = self._now()
            if self._is_likely and not self._is_polling:
                self._is_polling = True
                self._call_soon(self._poll)

    def _poll(self) -> None:
        if not self._running and self._now() - self._idle_since_s < LIMIT_S:
            self._call_soon(self._poll)
        else:
            self._is_polling = False
