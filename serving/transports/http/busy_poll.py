"""Stays awake for a moment where the next request is about to come.

A process that sleeps and is woken goes on with cold caches, which costs about the CPU that staying awake
does, and latency besides. A client that has one request in flight and asks again as soon as it has its
answer is waited for awake; when it once did not come in time, it is not, until it does.
"""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 0.0002


class Awake:
    """Counts what runs, and keeps an event loop turning. A class because it remembers the last pause."""

    __slots__ = ("_idle_since_s", "_is_likely", "_now", "_running", "_soon", "_turns")

    def __init__(
        self,
        soon: Callable[[Callable[[], object]], object] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without anything that runs.

        Args:
            soon: lets the event loop turn once more, by default the running one, and then calls back.
            now: seconds, on a monotonic clock.
        """
        self._soon = soon or asyncio.get_running_loop().call_soon
        self._now = now
        self._running = 0
        self._idle_since_s = float("-inf")
        self._is_likely = False  # that the next one comes within the limit
        self._turns = False

    def begin(self) -> None:
        """A request has come."""
        self._running += 1
        self._is_likely = self._running == 1 and self._now() - self._idle_since_s < LIMIT_S

    def end(self) -> None:
        """It was answered."""
        self._running -= 1
        if not self._running:
            self._idle_since_s = self._now()
            if self._is_likely and not self._turns:
                self._turns = True
                self._soon(self._turn)

    def _turn(self) -> None:
        if not self._running and self._now() - self._idle_since_s < LIMIT_S:
            self._soon(self._turn)
        else:
            self._turns = False
