"""The code of a call that was cancelled: transports cancel late calls, and so do their clients."""

import time

from serving.classify.deadlines import is_late
from serving.rpc.status import Code


def code_of_cancelled(deadline_s: float, started_s: float) -> Code:
    """Return DEADLINE_EXCEEDED if the call is late, otherwise CANCELLED.

    Args:
        deadline_s: on the clock of time.monotonic().
        started_s: on the clock of time.perf_counter(); 0 if the request is incomplete.
    """
    waited_s = time.perf_counter() - started_s if started_s else 0.0
    return Code.DEADLINE_EXCEEDED if is_late(deadline_s, waited_s) else Code.CANCELLED
