"""Ends calls whose deadlines have passed: a part in each turn of the event loop.

Clients that send calls together often give them the same deadline, and attackers do so on purpose: to end
9,000 calls in one turn took 0.3 s.
"""

import asyncio
from contextlib import suppress
from functools import partial

from serving.turns import Turns

END_US = 100  # of a call: it is cancelled, counted, and its client gets a status


def end_at(deadline_s: float, timeout: asyncio.Timeout, turns: Turns) -> asyncio.TimerHandle:
    """Let a timeout expire at a deadline.

    Args:
        deadline_s: on the clock of time.monotonic(), which is the event loop's.
        timeout: `asyncio.timeout(None)`.
        turns: of the event loop.

    Returns: the timer, to be cancelled after the timeout was left.
    """
    return turns.call_at(deadline_s, partial(_expire, timeout), END_US)


def _expire(timeout: asyncio.Timeout) -> None:
    with suppress(RuntimeError):  # the timeout was left meanwhile
        timeout.reschedule(0.0)
