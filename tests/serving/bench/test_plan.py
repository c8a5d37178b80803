"""The workers' shares add up to the load, and arrivals are a Poisson process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bench.plan import ClosedLoop, OpenLoop, loops


@given(st.integers(1, 500), st.integers(1, 32))
def test_callers_are_distributed_evenly(concurrency: int, workers: int) -> None:
    """No caller is lost or added, and no worker has two more than another."""
    shares = [ClosedLoop(concurrency).share(index, workers).concurrency for index in range(workers)]
    assert sum(shares) == concurrency
    assert max(shares) - min(shares) <= 1


@given(st.floats(1, 5000), st.integers(1, 8), st.integers(0, 1000))
def test_arrivals_come_in_order_at_their_rate(rate: float, workers: int, seed: int) -> None:
    """A Poisson process: the expected number within six deviations, reproducible by its seed."""
    share = OpenLoop(rate).share(0, workers)
    duration_s = 1000 / share.rate_per_s
    arrivals = list(share.arrivals_s(duration_s, seed))
    assert share.rate_per_s * workers == pytest.approx(rate)
    assert arrivals == sorted(arrivals)
    assert all(0 < each < duration_s for each in arrivals)
    assert len(arrivals) == pytest.approx(1000, abs=6 * 1000**0.5)
    assert arrivals == list(share.arrivals_s(duration_s, seed))


def test_workers_do_not_send_in_lockstep() -> None:
    """Seeds differ, so two workers' requests do not arrive in pairs."""
    first, second = (set(OpenLoop(100).arrivals_s(10, seed)) for seed in (0, 1))
    assert not first & second


def test_a_sweep_starts_with_the_light_loads() -> None:
    """Closed loops first; duplicates are measured once."""
    assert loops([16, 1, 16], [50.0, 5.0]) == [ClosedLoop(1), ClosedLoop(16), OpenLoop(5.0), OpenLoop(50.0)]
