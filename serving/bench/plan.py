"""What load is put on the server, and each worker process's share of it. Pure: no clock, no network.

Closed loop: so many callers, each asking again as soon as it is answered; it cannot overload a server. Open
loop: requests arrive when they arrive, as from many independent people, whether or not the server keeps up.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A number of callers."""

    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} in flight"

    def share(self, index: int, workers: int) -> "ClosedLoop":
        """What one of several workers does: whole callers, as evenly as it goes."""
        return ClosedLoop(self.concurrency // workers + (index < self.concurrency % workers))


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """A rate of arrivals."""

    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.rate_per_s:g}/s offered"

    def share(self, index: int, workers: int) -> "OpenLoop":
        """What one of several workers does. Independent random arrivals add up to random arrivals."""
        del index
        return OpenLoop(self.rate_per_s / workers)

    def arrivals_s(self, duration_s: float, seed: int) -> Iterator[float]:
        """When requests are due, in seconds from the start: a Poisson process, the same for the same seed."""
        gaps = random.Random(seed)  # noqa: S311 - an order of arrivals, no secret
        due_s = gaps.expovariate(self.rate_per_s)
        while due_s < duration_s:
            yield due_s
            due_s += gaps.expovariate(self.rate_per_s)


Loop = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was asked for."""

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
        """Of one load."""
        return self.warm_up_s + self.window_s


SWEEP = (1, 2, 4, 8, 16, 32, 64)  # callers, where nobody says how many


def loops(concurrencies: Sequence[int], rates_per_s: Sequence[float]) -> list[Loop]:
    """Every point of a sweep, the light ones first."""
    closed: list[Loop] = [ClosedLoop(each) for each in sorted(set(concurrencies))]
    return closed + [OpenLoop(each) for each in sorted(set(rates_per_s))]
