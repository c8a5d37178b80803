"""Turns: how much of its input a connection handles before the rest of the event loop has its turn.

Without them, one read of 256 KiB can hold 28,000 frames: 0.1 s in which no other client is served.
`../rounds.py` divides the time among connections.
"""

import asyncio
from collections.abc import Callable

from serving.transports.http.rounds import Rounds

# Work is counted in units of about 1 us of CPU. 1,000 are about 30 requests.
WORK_PER_TURN = 1000
READ_WORK = 20  # of receiving anything
FRAME_WORK = 2
WAKE_WORK = 15  # of a stream that waits for room: it sends a part of its answer
STREAM_WORK = 30  # with the application, which runs after the turn
REFUSED_WORK = 200  # a status with its details, instead of an answer
_HEAD_WORK, _HEAD_BYTES_PER_WORK = 10, 4  # a byte of Huffman code takes up to 0.2 us


class Turns:
    """Counts the work of a turn. When it is spent, reading pauses and the rest waits for the next turn.

    A turn can overdraw: one large header block takes several ms. Later turns pay for that.
    """

    __slots__ = ("_rounds", "_take_turn", "_transport", "is_held", "is_waiting", "work_left")

    def __init__(
        self,
        rounds: Rounds,
        transport: asyncio.Transport,
        take_turn: Callable[[], object],
    ) -> None:
        """Start with a full turn.

        Args:
            rounds: of all connections.
            transport: reading from it pauses while input waits.
            take_turn: handles input that waits, then calls `wait` or `end`.
        """
        self.work_left = WORK_PER_TURN
        self.is_waiting = False  # input waits for the next turn, or for `release`
        self.is_held = False  # no turn before `release`
        self._rounds = rounds
        self._transport = transport
        self._take_turn = take_turn

    def wait(self, *, has_had_turn: bool = True) -> None:
        """Continue in the next round."""
        if not self.is_waiting:
            self.is_waiting = True
            self._transport.pause_reading()
        if not self.is_held:
            self._rounds.join(self._next, has_had_turn=has_had_turn)

    def end(self, *, reads_on: bool) -> None:
        """All input has been handled: read on, unless the client has sent its last byte."""
        self.is_waiting = False
        if reads_on:
            self._transport.resume_reading()

    def hold(self) -> None:
        """End this turn after the current frame, and take no other before `release`."""
        self.is_held = True
        self.work_left = min(self.work_left, -1)

    def release(self) -> None:
        """Continue after `hold`."""
        if self.is_held:
            self.is_held = False
            if self.is_waiting:
                self._rounds.join(self._next, has_had_turn=True)

    def later(self, do: Callable[[], object], work: int) -> None:
        """Do something else in the next round that has work left."""

        def take() -> None:
            self._rounds.work_left -= work
            do()

        self._rounds.join(take, has_had_turn=True)

    def stop(self) -> None:
        """Take no more turns: the connection is closed."""
        self._take_turn = _nothing  # a method of the connection: a reference cycle

    def _next(self) -> None:
        if self.is_held or not self.is_waiting:
            return
        self.work_left = min(self.work_left, 0) + WORK_PER_TURN
        if self.work_left > 0:
            self._take_turn()
        else:
            self._rounds.join(self._next, has_had_turn=True)


def head_work(block_bytes: int) -> int:
    """Return the work of decoding a header block that is not cached."""
    return _HEAD_WORK + block_bytes // _HEAD_BYTES_PER_WORK


def _nothing() -> None:
    pass
