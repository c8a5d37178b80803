"""What the request path counts: plain numbers, of which prometheus_client is told when somebody looks.

An observation of prometheus_client takes locks and a dozen function calls; here it takes one addition or two.
Only the event loop counts; whoever looks may be any thread, one at a time.
"""

from bisect import bisect_left
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram, Summary


class Tally(Protocol):
    """Something that was counted."""

    def tell(self) -> None:
        """Bring the metric up to date."""


class CountTally:
    """A sum for a counter: add to `value`."""

    __slots__ = ("_counter", "_told", "value")

    def __init__(self, counter: Counter) -> None:
        self.value = 0.0
        self._told = 0.0
        self._counter = counter

    def tell(self) -> None:
        """See `Tally.tell`."""
        value = self.value
        self._counter.inc(value - self._told)
        self._told = value


class LastTally:
    """A value for a gauge: set `value`."""

    __slots__ = ("_gauge", "value")

    def __init__(self, gauge: Gauge) -> None:
        self.value = 0.0
        self._gauge = gauge

    def tell(self) -> None:
        """See `Tally.tell`."""
        if self.value:
            self._gauge.set(self.value)


class SummaryTally:
    """Observations for a summary: their number and sum."""

    __slots__ = ("_count", "_summary", "_told", "_total")

    def __init__(self, summary: Summary) -> None:
        self._count = 0
        self._total = 0.0
        self._told = (0, 0.0)
        self._summary = summary

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._count += 1
        self._total += value

    def tell(self) -> None:
        """See `Tally.tell`. The library takes only single observations, so its values are added to."""
        count, total = self._count, self._total
        self._summary._count.inc(count - self._told[0])  # noqa: SLF001
        self._summary._sum.inc(total - self._told[1])  # noqa: SLF001
        self._told = (count, total)


class HistogramTally:
    """Observations for a histogram, by bucket."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_told_counts", "_told_total", "_total")

    def __init__(self, histogram: Histogram) -> None:
        self._bounds: list[float] = histogram._upper_bounds  # noqa: SLF001 - the last is infinite
        self._counts = [0] * len(self._bounds)
        self._total = 0.0
        self._told_counts = list(self._counts)
        self._told_total = 0.0
        self._histogram = histogram

    def observe(self, value: float) -> None:
        """Count one observation: a bucket includes its bound."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def tell(self) -> None:
        """See `Tally.tell`. The library takes only single observations, so its values are added to."""
        counts, total = list(self._counts), self._total
        for bucket, count, told in zip(self._histogram._buckets, counts, self._told_counts, strict=True):  # noqa: SLF001
            if count != told:
                bucket.inc(count - told)
        self._histogram._sum.inc(total - self._told_total)  # noqa: SLF001
        self._told_counts, self._told_total = counts, total
