"""Tallies say in the end what single observations would have said."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from serving.metrics.counters import CountTally, HistogramTally, LastTally, SummaryTally

BOUNDS = (0.1, 0.25, 1.0)
# The bounds themselves too: a bucket includes its bound.
VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 99.0]) | st.floats(0, 2), max_size=30)


def _samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(before=VALUES, after=VALUES)
def test_a_histogram_ends_up_as_if_it_had_observed(before: list[float], after: list[float]) -> None:
    """Told twice, in the middle and at the end, every bucket and the sum are those of single observations."""
    told, observed = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally(Histogram("h", "h", registry=told, buckets=BOUNDS))
    plain = Histogram("h", "h", registry=observed, buckets=BOUNDS)
    for values in (before, after):
        for value in values:
            tally.observe(value)
            plain.observe(value)
        tally.tell()
    assert _samples(told) == pytest.approx(_samples(observed))


@given(before=VALUES, after=VALUES)
def test_a_summary_ends_up_as_if_it_had_observed(before: list[float], after: list[float]) -> None:
    """Number and sum are those of single observations."""
    told, observed = CollectorRegistry(), CollectorRegistry()
    tally, plain = SummaryTally(Summary("s", "s", registry=told)), Summary("s", "s", registry=observed)
    for values in (before, after):
        for value in values:
            tally.observe(value)
            plain.observe(value)
        tally.tell()
    assert _samples(told) == pytest.approx(_samples(observed))


@given(amounts=st.lists(st.integers(0, 100)))
def test_a_counter_is_told_of_each_amount_once(amounts: list[int]) -> None:
    """However often it is told, it counts what was added."""
    registry = CollectorRegistry()
    tally = CountTally(Counter("c", "c", registry=registry))
    for amount in amounts:
        tally.value += amount
        tally.tell()
    tally.tell()
    assert registry.get_sample_value("c_total") == sum(amounts)


def test_a_gauge_keeps_what_it_had_until_there_is_something_to_tell() -> None:
    """Where a file holds the value of a process that died, its successor does not begin at 0."""
    registry = CollectorRegistry()
    gauge = Gauge("g", "g", registry=registry)
    gauge.set(7)
    tally = LastTally(gauge)
    tally.tell()
    assert registry.get_sample_value("g") == 7
    tally.value = 9.0
    tally.tell()
    assert registry.get_sample_value("g") == 9


def test_telling_in_another_thread_loses_nothing() -> None:
    """A scrape comes in the middle of counting, again and again."""
    registry = CollectorRegistry()
    tally = HistogramTally(Histogram("h", "h", registry=registry, buckets=BOUNDS))
    done = threading.Event()

    def scrape() -> None:
        while not done.is_set():
            tally.tell()

    thread = threading.Thread(target=scrape)
    thread.start()
    for _ in range(50_000):
        tally.observe(0.5)
    done.set()
    thread.join(timeout=20)
    tally.tell()
    assert registry.get_sample_value("h_count") == 50_000
    assert math.isclose(registry.get_sample_value("h_sum") or 0, 25_000)
