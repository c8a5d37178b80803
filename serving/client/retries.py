"""Decides whether a failed attempt is repeated, and when: in time, after growing pauses. Does no I/O.

gRPC's own policy ends after five attempts (gRFC A6), which take a second and a half: restarts take longer.
"""

import math
import random
import time
from collections.abc import Callable

from serving.client.messages import CallFailed

# The pause after the first failure, doubled with each one up to the longest, then drawn between half of that
# and all of it: clients that lost the same server do not return at the same moment.
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0

_FOREVER_S = 1e9  # gRPC cannot represent much longer deadlines

OnRetry = Callable[[CallFailed, float], object]  # the failure, and seconds until the next attempt


class Retries:
    """The attempts of one call, or of one stream."""

    def __init__(
        self,
        timeout_s: float,
        attempts: int | None = None,
        *,
        outage: bool = False,
        on_retry: OnRetry | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            timeout_s: for all attempts together, or for each outage.
            attempts: at most this number; None: as many as the time allows.
            outage: the time counts from the failure that begins an outage, as for an endless stream.
            on_retry: called before each pause.
            now_s: a monotonic clock.
        """
        self._timeout_s = min(timeout_s, _FOREVER_S)
        self._attempts = math.inf if attempts is None else attempts
        self._outage = outage
        self._on_retry = on_retry
        self._now_s = now_s
        self._last: CallFailed | None = None
        self._started_s = self._failed_s = now_s()
        self._failures = 0

    def note_progress(self) -> None:
        """Note that the stream has given a result: the outage is over."""
        self._failures = 0

    @property
    def left_s(self) -> float:
        """Time until the deadline; 0 after it."""
        return max(0.0, self._started_s + self._timeout_s - self._now_s())

    @property
    def deadline_s(self) -> float | None:
        """Seconds for the next attempt; None: any time."""
        return None if self._outage else self.left_s

    def pause_s(self, failure: CallFailed) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            CallFailed: the failure, if there is to be no other attempt.
        """
        self._note_failure()
        pause_s = min(_SHORTEST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)
        # The server knows when it has room: earlier attempts would fail too.
        pause_s = failure.retry_after_s + pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if failure.code == "DEADLINE_EXCEEDED" and self._last is not None:
            failure = CallFailed(failure.code, f"{failure.message}; the attempt before failed: {self._last}")
        if not failure.is_transient or self._failures >= self._attempts or pause_s >= self.left_s:
            raise failure
        self._last = failure
        if self._on_retry is not None:
            self._on_retry(failure, pause_s)
        return pause_s

    def _note_failure(self) -> None:
        now_s = self._now_s()
        if self._outage and (not self._failures or now_s - self._failed_s > self._timeout_s):
            self._started_s, self._failures = now_s, 0
        self._failed_s = now_s
        self._failures += 1
