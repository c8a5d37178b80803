"""The histogram agrees with the raw samples, and histograms add up."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bench.latencies import Latencies

durations = st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=300)


def _counted(durations_s: list[float]) -> Latencies:
    latencies = Latencies()
    for each in durations_s:
        latencies.add(each)
    return latencies


@given(durations, st.floats(0.001, 1.0))
def test_quantiles_are_those_of_the_samples_within_one_percent(
    durations_s: list[float], fraction: float
) -> None:
    """Compared with numpy's percentile of the raw values, without interpolation."""
    exact = np.quantile(durations_s, fraction, method="inverted_cdf")
    assert _counted(durations_s).quantile_s(fraction) == pytest.approx(exact, rel=0.01)


@given(durations, durations)
def test_merged_histograms_are_the_histogram_of_all(first: list[float], second: list[float]) -> None:
    """Counts add up exactly, the mean up to rounding."""
    merged, together = _counted(first), _counted(first + second)
    merged.merge(_counted(second))
    assert merged.counts == together.counts
    assert merged.mean_s == pytest.approx(np.mean(first + second))


def test_memory_is_bounded() -> None:
    """A hundred thousand different durations, some absurd, fill at most a few thousand buckets."""
    latencies = _counted([0.0, -1.0, 1e9, *np.geomspace(1e-7, 1e5, 100_000).tolist()])
    assert latencies.count == 100_003
    assert len(latencies.counts) < 2500


def test_without_durations_there_is_no_quantile() -> None:
    """NaN instead of a crash."""
    assert math.isnan(Latencies().quantile_s(0.5))
    assert math.isnan(Latencies().mean_s)
