"""Which image is decoded next. Versions share the decoding threads by time, and each is served in order.

Start-time fair queueing (Goyal, Vin and Chen 1996): the version that has used the least time comes first, and
one that was idle starts where the others are. So a version whose images take long, or that gets too many of
them, does not delay the images of others. Independent of images.
"""

import heapq
import itertools
import math
import threading
import time
from collections import deque
from typing import Generic, Protocol, TypeVar

from serving.batching.backlog import Backlog

_UNKNOWN_S = 1e-3  # charged for an image before the first one of its version is measured


class Job(Protocol):
    """One image that waits for a thread."""

    arrived_s: float  # on the clock of time.monotonic()

    @property
    def is_wanted(self) -> bool:
        """Whether its caller still waits."""


J = TypeVar("J", bound=Job)


class DecodeQueue(Generic[J]):
    """Jobs in the order of their turn. Threads take from it."""

    def __init__(self, threads: int) -> None:
        """Start without jobs.

        Args:
            threads: that take jobs.
        """
        self._threads = threads
        self._lock = threading.Lock()
        self._lines: dict[Backlog, deque[J]] = {}  # of the versions with jobs
        self._turns: list[tuple[float, int, Backlog]] = []  # a heap with one entry for each line
        self._ties = itertools.count()
        self._now_s = 0.0  # virtual time: when the version whose turn was last began

    def put(self, backlog: Backlog, job: J) -> None:
        """Add a job at the end of its version's line."""
        with self._lock:
            line = self._lines.get(backlog)
            if line is None:
                line = self._lines[backlog] = deque()
                backlog.decoded_until_s = max(backlog.decoded_until_s, self._now_s)
                self._add_turn(backlog)
            line.append(job)

    def take(self) -> J | None:
        """Remove and return the next job whose caller still waits; None if there is none."""
        with self._lock:
            while self._turns:
                self._now_s, _, backlog = heapq.heappop(self._turns)
                line = self._lines[backlog]
                job = _next_wanted(line)
                if job is not None:
                    backlog.decoded_until_s = self._now_s + (backlog.decode_s or _UNKNOWN_S)
                if line:
                    self._add_turn(backlog)
                else:
                    del self._lines[backlog]
                if job is not None:
                    return job
        return None

    def wait_s(self, backlog: Backlog) -> float:
        """Estimate how long a new job of a version waits for those before it.

        At least as long as the first one has waited by now: threads that are suddenly slow are noticed before
        they have measured it.
        """
        line = self._lines.get(backlog)
        if line is None:
            return 0.0
        with self._lock:
            first_s = line[0].arrived_s if line else math.inf
        estimate_s = len(line) * backlog.decode_s * len(self._lines) / self._threads
        return max(estimate_s, time.monotonic() - first_s)

    def _add_turn(self, backlog: Backlog) -> None:
        heapq.heappush(self._turns, (backlog.decoded_until_s, next(self._ties), backlog))


def _next_wanted(line: deque[J]) -> J | None:
    while line:
        job = line.popleft()
        if job.is_wanted:
            return job
    return None
