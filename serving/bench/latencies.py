"""A latency histogram with logarithmic buckets: bounded memory, 1 % precision, mergeable across processes.

After HdrHistogram (Tene), with a logarithm in place of its two levels. Independent of requests.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

_LOWEST_S = 1e-6
_HIGHEST_S = 1e4
_GROWTH = 1.01  # a bucket ends 1 % above its start, so its midpoint is accurate to 0.5 %
_LOG_GROWTH = math.log(_GROWTH)


@dataclass(slots=True)
class Latencies:
    """Durations in seconds, clamped to 1 us..10,000 s."""

    counts: Counter[int] = field(default_factory=Counter)  # bucket -> number of durations
    total_s: float = 0.0

    def add(self, duration_s: float) -> None:
        """Add one duration."""
        self.counts[_bucket(duration_s)] += 1
        self.total_s += duration_s

    def merge(self, other: "Latencies") -> None:
        """Add all durations of another histogram."""
        self.counts.update(other.counts)
        self.total_s += other.total_s

    @property
    def count(self) -> int:
        """Number of durations."""
        return self.counts.total()

    @property
    def mean_s(self) -> float:
        """Mean; NaN if there are no durations."""
        return self.total_s / self.count if self.count else math.nan

    def quantile_s(self, fraction: float) -> float:
        """Return the quantile at this fraction (0..1); NaN if there are no durations."""
        wanted, seen = max(1, math.ceil(fraction * self.count)), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return float(_LOWEST_S * _GROWTH ** (bucket + 0.5))
        return math.nan


def _bucket(duration_s: float) -> int:
    return int(math.log(min(max(duration_s, _LOWEST_S), _HIGHEST_S) / _LOWEST_S) / _LOG_GROWTH)
