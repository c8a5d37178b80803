"""Rounds: how much of the clients' input one iteration of the event loop handles, over all connections.

A limit for each connection is not enough: 32 clients that each use up theirs add up to 0.1 s in which no
other client is served.
"""

import asyncio
from collections import deque
from collections.abc import Callable

# Work is counted in units of about 1 us of CPU.
WORK_PER_ROUND = 3000

Turn = Callable[[], object]


class Rounds:
    """The work that is left in this round, and the connections whose input waits for the next one.

    A connection that has just received something comes before those that have used up a turn: a client that
    asks for little does not wait for clients that always ask for more. RFC 8290 does the same with packets.
    """

    __slots__ = ("_arrived", "_call_soon", "_is_due", "_waiting", "work_left")

    def __init__(self, call_soon: Callable[[Turn], object] | None = None) -> None:
        """Start a round.

        Args:
            call_soon: calls a function in the next iteration of the event loop; by default the running
                loop's.
        """
        self.work_left = WORK_PER_ROUND  # below 0: input is kept for the next round
        self._call_soon = call_soon or asyncio.get_running_loop().call_soon
        self._arrived: deque[Turn] = deque()
        self._waiting: deque[Turn] = deque()
        self._is_due = False

    def join(self, take_turn: Turn, *, has_had_turn: bool) -> None:
        """Call `take_turn` in the next round that has work left.

        Args:
            take_turn: handles input, and takes its work from `work_left`.
            has_had_turn: whether this input has had a turn already.
        """
        (self._waiting if has_had_turn else self._arrived).append(take_turn)
        if not self._is_due:
            self._is_due = True
            self._call_soon(self._run)

    def _run(self) -> None:
        self.work_left = WORK_PER_ROUND
        turns = len(self._arrived) + len(self._waiting)  # one that joins again waits for the next round
        try:
            while turns and self.work_left > 0:
                turns -= 1
                (self._arrived or self._waiting).popleft()()
        finally:
            self._is_due = bool(self._arrived or self._waiting)
            if self._is_due:
                self._call_soon(self._run)
