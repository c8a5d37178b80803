"""The loads of a benchmark, and how they are divided among worker processes. Pure: no clock, no network.

Closed loop: a number of callers, each sending its next request when the last is answered; this cannot
overload a server. Open loop: requests arrive at random times, as from many independent clients, even if the
server is slow.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of callers."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} in flight"

    def share(self, index: int, workers: int) -> "ClosedLoop":
        """Return one worker's share of the callers, as even as possible."""
        return ClosedLoop(self.concurrency // workers + (index < self.concurrency % workers))


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Random arrivals at a fixed mean rate."""

    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.rate_per_s:g}/s offered"

    def share(self, index: int, workers: int) -> "OpenLoop":
        """Return one worker's share. The sum of independent Poisson processes is a Poisson process."""
        del index
        return OpenLoop(self.rate_per_s / workers)

    def arrivals_s(self, duration_s: float, seed: int) -> Iterator[float]:
        """Yield the due times of requests, in seconds from the start: a seeded Poisson process."""
        gaps = random.Random(seed)  # noqa: S311 - not used for security
        due_s = gaps.expovariate(self.rate_per_s)
        while due_s < duration_s:
            yield due_s
            due_s += gaps.expovariate(self.rate_per_s)


Loop = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a benchmark."""

    server: str  # HOST:PORT
    model: str
    loops: Sequence[Loop]
    images: Sequence[Path] = ()
    processes: int = 1
    warm_up_s: float = 0.5
    window_s: float = 3.0
    timeout_s: float = 10.0
    token: str | None = field(default=None, repr=False)
    metrics_url: str | None = None

    @property
    def duration_s(self) -> float:
        """Duration of one load, including warm-up."""
        return self.warm_up_s + self.window_s


SWEEP = (1, 2, 4, 8, 16, 32, 64)  # default numbers of callers


def loops(concurrencies: Sequence[int], rates_per_s: Sequence[float]) -> list[Loop]:
    """Return every load of a sweep, lightest first."""
    closed: list[Loop] = [ClosedLoop(each) for each in sorted(set(concurrencies))]
    return closed + [OpenLoop(each) for each in sorted(set(rates_per_s))]
