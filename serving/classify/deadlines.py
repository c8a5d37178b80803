"""Decides whether a call that was cancelled is late. Its client's timer runs ahead of the server's."""

import math
import time

# A client that gives up at its deadline cancels the call. The server's deadline is later by the time that the
# request has spent on its way and in the queues of a busy server. So a cancellation in the last fifth of a
# call's time, at most half a second, counts as late.
_ON_THE_WAY_S = 0.05
_LAST_SHARE, _AT_MOST_S = 0.2, 0.5
# gRPC's C core rounds timeouts up by at most 1 % (timeout_encoding.cc).
_ROUNDED_UP = 0.01


def is_late(deadline_s: float, waited_s: float) -> bool:
    """Return whether the deadline has passed, or is so near that the client gave up because of it.

    Args:
        deadline_s: on the clock of time.monotonic().
        waited_s: time since the call began.
    """
    if deadline_s == math.inf:
        return False
    left_s = deadline_s - time.monotonic()
    whole_s = waited_s + left_s
    return left_s <= _ON_THE_WAY_S + max(min(_LAST_SHARE * whole_s, _AT_MOST_S), _ROUNDED_UP * whole_s)
