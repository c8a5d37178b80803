"""The loads of a benchmark, and each worker process's share of them. Pure: no clock, no network.

Closed loop: a number of callers, each sending its next request when the last is answered; it cannot overload
a server. Open loop: requests arrive at random times, as from many independent clients, however slow the
server is.
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
        """Return one worker's share: whole callers, as even as possible."""
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
        """Yield when requests are due, in seconds from the start: a Poisson process, fixed by the seed."""
        gaps = random.Random(seed)  # noqa: S311 - an order of arrivals, no secret
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
        """Duration of one load, warm-up included."""
        return self.warm_up_s + self.window_s


SWEEP = (1, 2, 4, 8, 16, 32, 64)  # callers, by default


def loops(concurrencies: Sequence[int], rates_per_s: Sequence[float]) -> list[Loop]:
    """Return every load of a sweep, lightest first."""
    closed: list[Loop] = [ClosedLoop(each) for each in sorted(set(concurrencies))]
    return closed + [OpenLoop(each) for each in sorted(set(rates_per_s))]
