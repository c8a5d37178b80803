"""Measures whether an event loop turns: a timer on it, which any thread can read. Independent of its work."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_INTERVAL_S = 0.25  # between two ticks: they take 4 us
_WINDOW_S = 30.0  # `largest_lag_s` covers the last 30 to 60 s, so that no scrape misses a lag


class LoopMonitor:
    """Ticks on the event loop. `async with` starts and stops it."""

    def __init__(
        self,
        *,
        hung_after_s: float,
        on_tick: Callable[[], None] = lambda: None,
        interval_s: float = _INTERVAL_S,
        window_s: float = _WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the options.

        Args:
            hung_after_s: an event loop that has not turned for longer hangs.
            on_tick: called on the event loop with every tick. Must not raise.
            interval_s: between two ticks.
            window_s: `largest_lag_s` covers one to two of them.
            clock: seconds; does not go backwards.
        """
        self._hung_after_s = hung_after_s
        self._on_tick = on_tick
        self._interval_s = interval_s
        self._window_s = window_s
        self._clock = clock
        self._ticked_s = self._window_began_s = clock()
        self._largest_s = self._largest_before_s = 0.0  # in this window, and in the one before
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._ticked_s = self._clock()
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self.tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def lag_s(self) -> float:
        """How late the next tick is."""
        return max(0.0, self._clock() - self._ticked_s - self._interval_s)

    @property
    def largest_lag_s(self) -> float:
        """The largest lag of the last minute or so."""
        return max(self._largest_s, self._largest_before_s, self.lag_s)

    @property
    def problem(self) -> str:
        """Why the event loop hangs; empty if it turns."""
        lag_s = self.lag_s
        if lag_s <= self._hung_after_s:
            return ""
        return f"the event loop has not turned for {lag_s:.1f} s, the limit is {self._hung_after_s:g} s"

    def tick(self) -> None:
        """Note that the event loop turns. Its timer calls this."""
        now_s = self._clock()
        self._largest_s = max(self._largest_s, self.lag_s)
        self._ticked_s = now_s
        if now_s - self._window_began_s >= self._window_s:
            self._largest_before_s, self._largest_s, self._window_began_s = self._largest_s, 0.0, now_s
        self._on_tick()
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self.tick)
