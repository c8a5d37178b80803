"""Busy polling: the event loop keeps spinning for a moment if the next request is likely to arrive soon.

A process that sleeps and wakes up has cold caches. That costs about as much CPU as polling, and adds latency.
The loop polls for a client that has one request in flight and sends the next one as soon as it has the
answer. If that request does not arrive in time, the loop sleeps until a request does.
"""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 0.0002


class BusyPoll:
    """Counts running requests, and keeps an event loop spinning."""

    __slots__ = ("_call_soon", "_idle_since_s", "_is_likely", "_is_polling", "_now", "_running")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], object]], object] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without requests.

        Args:
            call_soon: calls a function in the next iteration of the event loop; by default the running
                loop's.
            now: returns the time in seconds, on a monotonic clock.
        """
        self._call_soon = call_soon or asyncio.get_running_loop().call_soon
        self._now = now
        self._running = 0
        self._idle_since_s = float("-inf")
        self._is_likely = False  # whether the next request is expected within the limit
        self._is_polling = False

    def begin(self) -> None:
        """Record that a request begins."""
        self._running += 1
        self._is_likely = self._running == 1 and self._now() - self._idle_since_s < LIMIT_S

    def end(self) -> None:
        """Record that a request has ended."""
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
