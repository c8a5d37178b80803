"""Divides long work into slices, so that no turn of the event loop takes long. Independent of the work."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

TURN_US = 2000
# Copying a message of this size takes 0.5 ms, because the memory of its copy is new: 2 bytes a nanosecond.
LARGE_BYTES = 2**20
_COPIED_BYTES_PER_US = 2000


def copy_us(size_bytes: int) -> int:
    """Return the cost of copying that many bytes once."""
    return size_bytes // _COPIED_BYTES_PER_US


class _Slice(NamedTuple):
    cost_us: int
    admitted: asyncio.Future[None]


class Turns:
    """Limits the work of a turn. If tasks only yielded after each slice, hundreds could run in one turn."""

    def __init__(self, turn_us: int = TURN_US) -> None:
        """Start without work.

        Args:
            turn_us: microseconds of work in one turn of the event loop. A longer slice has a turn for itself,
                and uses up the next ones.
        """
        self._turn_us = turn_us
        self._taken_us = 0  # of this turn
        self._waiting: deque[_Slice] = deque()
        self._ends = False  # whether the end of this turn is scheduled

    @property
    def has_waiting(self) -> bool:
        """Whether a slice waits for its turn."""
        return bool(self._waiting)

    async def take(self, cost_us: int) -> None:
        """Wait for a turn with room for a slice, which is usually this one. First come, first served.

        Args:
            cost_us: an estimate of the work that follows, in microseconds.
        """
        if not self._takes_at_once(cost_us):
            await self._turn_of(cost_us)

    def call_at(self, when_s: float, do: Callable[[], object], cost_us: int) -> asyncio.TimerHandle:
        """Call a function at a time, or in the first turn after it that has room.

        Args:
            when_s: on the event loop's clock.
            do: may still be called after the timer was cancelled, if it was due.
            cost_us: as for `take`.
        """
        return asyncio.get_running_loop().call_at(when_s, self._call, do, cost_us)

    def _call(self, do: Callable[[], object], cost_us: int) -> None:
        if self._takes_at_once(cost_us):
            do()
        else:
            self._turn_of(cost_us).add_done_callback(lambda _: do())

    def _takes_at_once(self, cost_us: int) -> bool:
        """Whether this turn has room for a slice; then it is taken."""
        if not self._ends:
            self._ends = True
            asyncio.get_running_loop().call_soon(self._end)
        has_room = not self._waiting and self._has_room(cost_us)
        if has_room:
            self._taken_us += cost_us
        return has_room

    def _turn_of(self, cost_us: int) -> asyncio.Future[None]:
        """Return a future that is done in the turn of a slice."""
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append(_Slice(cost_us, admitted))
        return admitted

    def _has_room(self, cost_us: int) -> bool:
        return not self._taken_us or self._taken_us + cost_us <= self._turn_us

    def _end(self) -> None:
        # A slice longer than a turn also uses up the next ones, so that other calls make progress: while each
        # turn had a slice of 17 ms, a call that took four turns waited for 64 ms.
        self._taken_us = max(0, self._taken_us - self._turn_us)
        while self._waiting and self._has_room(self._waiting[0].cost_us):
            cost_us, admitted = self._waiting.popleft()
            if not admitted.done():  # cancelled
                admitted.set_result(None)
                self._taken_us += cost_us
        self._ends = self._taken_us > 0
        if self._ends:
            asyncio.get_running_loop().call_soon(self._end)
