"""Counters, gauges, summaries and histograms as plain numbers, and as metric families for scrapes.

An observation is one or two additions, 0.3 us; prometheus_client's metrics take locks and make a dozen calls.
A series is counted by one thread at a time, most by the event loop's; any thread may read.
"""

import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import accumulate
from threading import Lock
from typing import Generic, Protocol, TypeVar

from prometheus_client import Counter, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.samples import Sample

Labels = tuple[str, ...]
State = Sequence[float]  # the numbers of one value, to share with other processes


class Value(Protocol):
    """The value of one series."""

    created_s: float  # Unix time; 0 for a value restored from another process

    def state(self) -> State:
        """The numbers of this value, for `restore`."""

    def restore(self, state: State) -> None:
        """Set this value to the numbers of another process."""


class CounterValue:
    """A sum: add to `value`."""

    __slots__ = ("created_s", "value")

    def __init__(self) -> None:
        self.created_s = 0.0
        self.value = 0.0

    def add_one(self) -> None:
        """Add one, where a function is needed."""
        self.value += 1

    def state(self) -> State:
        """See `Value`."""
        return (self.value,)

    def restore(self, state: State) -> None:
        """See `Value`."""
        (self.value,) = state


class GaugeValue:
    """A number that goes up and down, or a function that returns it."""

    __slots__ = ("_function", "created_s", "value")

    def __init__(self) -> None:
        self.created_s = 0.0
        self.value = 0.0
        self._function: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Set the value."""
        self.value = value

    def set_function(self, function: Callable[[], float]) -> None:
        """Show the result of `function`, which any thread may call."""
        self._function = function

    def state(self) -> State:
        """See `Value`."""
        return (self.value if self._function is None else self._function(),)

    def restore(self, state: State) -> None:
        """See `Value`."""
        (self.value,) = state


class SummaryValue:
    """The number of observations and their sum."""

    __slots__ = ("count", "created_s", "total")

    def __init__(self) -> None:
        self.created_s = 0.0
        self.count: float = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.count += 1
        self.total += value

    def state(self) -> State:
        """See `Value`."""
        return self.count, self.total

    def restore(self, state: State) -> None:
        """See `Value`."""
        self.count, self.total = state


class HistogramValue:
    """The number of observations in each bucket, and the sum of all."""

    __slots__ = ("_bounds", "buckets", "created_s", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.created_s = 0.0
        self._bounds = bounds
        self.buckets: list[float] = [0] * (len(bounds) + 1)  # the last counts values above all bounds
        self.total = 0.0

    @property
    def count(self) -> float:
        """Number of observations."""
        return sum(self.buckets)

    def observe(self, value: float) -> None:
        """Count one observation. A bucket includes its bound."""
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Count several observations."""
        bounds, buckets, total = self._bounds, self.buckets, self.total
        for value in values:
            buckets[bisect_left(bounds, value)] += 1
            total += value
        self.total = total

    def add(self, buckets: Sequence[float], total: float) -> None:
        """Add observations that were counted elsewhere: the number in each bucket, and their sum."""
        self.buckets = [before + more for before, more in zip(self.buckets, buckets, strict=True)]
        self.total += total

    def state(self) -> State:
        """See `Value`."""
        return *self.buckets, self.total

    def restore(self, state: State) -> None:
        """See `Value`."""
        *self.buckets, self.total = state


class IndexValue:
    """Counts in bins of a window and of a reference, shown as one index of how much they differ."""

    __slots__ = ("created_s", "live", "reference")

    def __init__(self) -> None:
        self.created_s = 0.0
        self.live: Sequence[float] = ()
        self.reference: Sequence[float] = ()

    def compare(self, live: Sequence[float], reference: Sequence[float]) -> None:
        """Set the counts. Both have as many bins."""
        self.live, self.reference = live, reference

    def state(self) -> State:
        """See `Value`."""
        return *self.live, *self.reference

    def restore(self, state: State) -> None:
        """See `Value`. The sum of references that are equal has the same shares."""
        bins = len(state) // 2
        self.live, self.reference = state[:bins], state[bins:]


V = TypeVar("V", bound=Value)


class Family(ABC, Generic[V]):
    """The series of one metric: a value for each combination of labels."""

    live = False  # whether values expire with the process that set them

    def __init__(self, name: str, meaning: str, label_names: Sequence[str], make: Callable[[], V]) -> None:
        self.name = name
        self._meaning = meaning
        self._label_names = tuple(label_names)
        self._make = make
        self._values: dict[Labels, V] = {}
        self._changing = Lock()  # held to add and remove series
        if not label_names:
            self.labels()  # without labels, there is one series, shown from the start

    def labels(self, *labels: str) -> V:
        """Return the value of one series, initially 0. Cache it where it is updated often."""
        value = self._values.get(labels)
        return value if value is not None else self._add(labels, time.time())

    def find(self, *labels: str) -> V | None:
        """Return the value of one series, or None."""
        return self._values.get(labels)

    def remove(self, *labels: str) -> None:
        """Remove a series."""
        with self._changing:
            del self._values[labels]

    def remove_all(self, names: Labels, values: Labels) -> None:
        """Remove all series whose first labels have these names and values."""
        if self._label_names[: len(names)] != names:
            return
        with self._changing:
            for labels in [each for each in self._values if each[: len(values)] == values]:
                del self._values[labels]

    def items(self) -> list[tuple[Labels, V]]:
        """Return all series, in the order of creation."""
        with self._changing:
            return list(self._values.items())

    def states(self) -> list[tuple[Labels, State]]:
        """Return the numbers of all series, for other processes."""
        return [(labels, value.state()) for labels, value in self.items()]

    def merge(self, labels: Labels, states: Iterable[State]) -> None:
        """Set a series to the combined values of several processes."""
        value = self._values.get(labels)
        if value is None:
            value = self._add(labels, created_s=0.0)
        value.restore([self.combine(column) for column in zip(*states, strict=True)])

    def combine(self, values: Iterable[float]) -> float:
        """Combine one number of several processes."""
        return sum(values)

    @abstractmethod
    def collect(self) -> Metric:
        """Return the family for a scrape."""

    def _add(self, labels: Labels, created_s: float) -> V:
        if len(labels) != len(self._label_names):
            raise ValueError(f"{self.name} has labels {self._label_names}, got {labels}. This is a bug.")
        value = self._make()
        value.created_s = created_s
        with self._changing:
            return self._values.setdefault(labels, value)

    def _add_created(self, metric: Metric, labels: Labels, value: V) -> None:
        if value.created_s and _shows_created():
            named = dict(zip(self._label_names, labels, strict=True))
            metric.samples.append(Sample(f"{self.name}_created", named, value.created_s))


class CounterFamily(Family[CounterValue]):
    """A counter metric."""

    def __init__(self, name: str, meaning: str, label_names: Sequence[str] = ()) -> None:
        super().__init__(name, meaning, label_names, CounterValue)

    def collect(self) -> Metric:
        """See `Family`."""
        metric = CounterMetricFamily(self.name, self._meaning, labels=self._label_names)
        for labels, each in self.items():
            metric.add_metric(labels, each.value)
            self._add_created(metric, labels, each)
        return metric


class BoundedCounterFamily(CounterFamily):
    """A counter metric whose last label may have thousands of values: scrapes show some, and sum the rest."""

    REST = "other"

    def __init__(self, name: str, meaning: str, label_names: Sequence[str], *, shown: int) -> None:
        """Create the family.

        Args:
            name: metric name.
            meaning: help text.
            label_names: the labels of each series.
            shown: how many values of the last label have a separate series: those that came first.
        """
        super().__init__(name, meaning, label_names)
        self._shown = shown

    def collect(self) -> Metric:
        """See `Family`."""
        metric = CounterMetricFamily(self.name, self._meaning, labels=self._label_names)
        shown: defaultdict[Labels, dict[str, float]] = defaultdict(dict)
        for (*first, last), each in self.items():
            counts = shown[tuple(first)]
            key = last if last in counts or len(counts) < self._shown else self.REST
            counts[key] = counts.get(key, 0) + each.value
        for first_labels, counts in shown.items():
            for last, count in counts.items():
                metric.add_metric((*first_labels, last), count)
        return metric


class IndexFamily(Family[IndexValue]):
    """A gauge metric: an index that is computed from the counts of all processes."""

    live = True

    def __init__(
        self,
        name: str,
        meaning: str,
        label_names: Sequence[str],
        *,
        index: Callable[[Sequence[float], Sequence[float]], float],
        min_images: int,
    ) -> None:
        """Create the family.

        Args:
            name: metric name.
            meaning: help text.
            label_names: the labels of each series.
            index: computes the index from live counts and those of the reference.
            min_images: fewer live images have no index.
        """
        super().__init__(name, meaning, label_names, IndexValue)
        self._index = index
        self._min_images = min_images

    def merge(self, labels: Labels, states: Iterable[State]) -> None:
        """See `Family`. Workers whose version has other bins do not count."""
        first, *others = states
        super().merge(labels, [first, *(each for each in others if len(each) == len(first))])

    def collect(self) -> Metric:
        """See `Family`."""
        metric = GaugeMetricFamily(self.name, self._meaning, labels=self._label_names)
        for labels, each in self.items():
            if sum(each.live) >= self._min_images:
                metric.add_metric(labels, self._index(each.live, each.reference))
        return metric


class GaugeFamily(Family[GaugeValue]):
    """A gauge metric."""

    def __init__(
        self,
        name: str,
        meaning: str,
        label_names: Sequence[str] = (),
        *,
        across: Callable[[Iterable[float]], float],
        live: bool = True,
    ) -> None:
        """Create the family.

        Args:
            name: metric name.
            meaning: help text.
            label_names: the labels of each series.
            across: combines the values of several processes: `sum`, `min` or `max`.
            live: whether values expire with the process that set them.
        """
        super().__init__(name, meaning, label_names, GaugeValue)
        self._across = across
        self.live = live

    def combine(self, values: Iterable[float]) -> float:
        """See `Family`."""
        return self._across(values)

    def collect(self) -> Metric:
        """See `Family`."""
        metric = GaugeMetricFamily(self.name, self._meaning, labels=self._label_names)
        for labels, each in self.items():
            metric.add_metric(labels, each.state()[0])
        return metric


class SummaryFamily(Family[SummaryValue]):
    """A summary metric, without quantiles."""

    def __init__(self, name: str, meaning: str, label_names: Sequence[str] = ()) -> None:
        super().__init__(name, meaning, label_names, SummaryValue)

    def collect(self) -> Metric:
        """See `Family`."""
        metric = SummaryMetricFamily(self.name, self._meaning, labels=self._label_names)
        for labels, each in self.items():
            metric.add_metric(labels, int(each.count), each.total)
            self._add_created(metric, labels, each)
        return metric


class HistogramFamily(Family[HistogramValue]):
    """A histogram metric."""

    def __init__(
        self,
        name: str,
        meaning: str,
        label_names: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        shows_unused: bool = True,
    ) -> None:
        """Create the family.

        Args:
            name: metric name.
            meaning: help text.
            label_names: the labels of each series.
            bounds: upper bounds of the buckets, ascending, without infinity.
            shows_unused: whether scrapes show histograms without observations.
        """
        super().__init__(name, meaning, label_names, partial(HistogramValue, bounds))
        self._shows_unused = shows_unused
        self._bounds = [*(str(float(bound)) for bound in bounds), "+Inf"]

    def collect(self) -> Metric:
        """See `Family`."""
        metric = HistogramMetricFamily(self.name, self._meaning, labels=self._label_names)
        for labels, each in self.items():
            if not (self._shows_unused or any(each.buckets)):
                continue
            buckets = list(zip(self._bounds, accumulate(each.buckets), strict=True))
            metric.add_metric(labels, buckets, each.total)
            self._add_created(metric, labels, each)
        return metric


@cache
def _shows_created() -> bool:
    """Whether to show `_created` series: prometheus_client reads PROMETHEUS_DISABLE_CREATED_SERIES."""
    (probe,) = Counter("probe", "probe", registry=None).collect()
    return any(sample.name.endswith("_created") for sample in probe.samples)
