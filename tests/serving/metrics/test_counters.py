"""Our metrics show the same numbers as those of prometheus_client."""

import math
import threading
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, Summary

from serving.metrics.counters import CounterFamily, GaugeFamily, HistogramFamily, SummaryFamily

BOUNDS = (0.1, 0.25, 1.0)
LABELS = ("a",)
# The bounds themselves too: a bucket includes its bound.
VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 99.0]) | st.floats(0, 2), max_size=30)


def _samples(metrics: Iterable[Metric]) -> dict[tuple[str, str], float]:
    return {
        (sample.name, str(sorted(sample.labels.items()))): sample.value
        for family in metrics
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(values=VALUES)
def test_a_histogram_equals_the_librarys(values: list[float]) -> None:
    """Every bucket, the count and the sum."""
    registry = CollectorRegistry()
    library = Histogram("h", "h", LABELS, registry=registry, buckets=BOUNDS).labels("x")
    ours = HistogramFamily("h", "h", LABELS, bounds=BOUNDS)
    for value in values:
        library.observe(value)
        ours.labels("x").observe(value)
    ours.labels("x")
    assert _samples([ours.collect()]) == pytest.approx(_samples(registry.collect()))


@given(values=VALUES)
def test_a_summary_equals_the_librarys(values: list[float]) -> None:
    """The count and the sum."""
    registry = CollectorRegistry()
    library, ours = Summary("s", "s", LABELS, registry=registry).labels("x"), SummaryFamily("s", "s", LABELS)
    for value in values:
        library.observe(value)
        ours.labels("x").observe(value)
    ours.labels("x")
    assert _samples([ours.collect()]) == pytest.approx(_samples(registry.collect()))


@given(amounts=st.lists(st.integers(0, 100)))
def test_a_counter_equals_the_librarys(amounts: list[int]) -> None:
    """For whole numbers, exactly."""
    registry = CollectorRegistry()
    library, ours = Counter("c", "c", LABELS, registry=registry).labels("x"), CounterFamily("c", "c", LABELS)
    for amount in amounts:
        library.inc(amount)
        ours.labels("x").value += amount
    ours.labels("x")
    assert _samples([ours.collect()]) == _samples(registry.collect())


def test_a_gauge_equals_the_librarys() -> None:
    """With a value and with a function; without labels it is shown from the start."""
    registry = CollectorRegistry()
    library, ours = Gauge("g", "g", registry=registry), GaugeFamily("g", "g", across=sum)
    assert _samples([ours.collect()]) == _samples(registry.collect()) == {("g", "[]"): 0}
    library.set(7)
    ours.labels().set(7)
    assert _samples([ours.collect()]) == _samples(registry.collect())
    library.set_function(lambda: 9)
    ours.labels().set_function(lambda: 9)
    assert _samples([ours.collect()]) == _samples(registry.collect())


def test_a_series_has_its_time_of_creation() -> None:
    """It shows restarts. A value that is merged from several processes has none."""
    here, merged = CounterFamily("c", "c", LABELS), CounterFamily("c", "c", LABELS)
    here.labels("x").value = 3
    merged.merge(("x",), [(1.0,), (2.0,)])
    assert [sample.name for sample in here.collect().samples] == ["c_total", "c_created"]
    assert [(sample.name, sample.value) for sample in merged.collect().samples] == [("c_total", 3)]


def test_a_removed_series_is_not_shown() -> None:
    """For example, the past state of a version."""
    states = GaugeFamily("g", "g", LABELS, across=max)
    states.labels("loading").set(1)
    states.labels("ready").set(1)
    states.remove("loading")
    assert _samples([states.collect()]) == {("g", "[('a', 'ready')]"): 1}


def test_the_number_of_labels_is_checked() -> None:
    """Too few labels must not create another series."""
    with pytest.raises(ValueError, match="This is a bug"):
        CounterFamily("c", "c", LABELS).labels()


def test_a_scrape_in_another_thread_loses_nothing() -> None:
    """It reads repeatedly during updates."""
    family = HistogramFamily("h", "h", LABELS, bounds=BOUNDS)
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            family.collect()

    thread = threading.Thread(target=scrape)
    thread.start()
    for number in range(50_000):
        family.labels(str(number % 100)).observe(0.5)
    done.set()
    thread.join(timeout=20)
    samples = [sample for sample in family.collect().samples if sample.name == "h_sum"]
    assert len(samples) == 100
    assert math.isclose(sum(sample.value for sample in samples), 25_000)
