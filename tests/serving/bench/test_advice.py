"""The knee is where theory predicts it, and the advice follows from the points."""

from hypothesis import given
from hypothesis import strategies as st

from serving.bench.advice import advise, find_knee, holding
from serving.bench.plan import ClosedLoop, OpenLoop
from serving.bench.server_facts import ServerFacts
from tests.serving.bench.make_point import MakePoint


def test_the_knee_of_a_single_server_queue_is_at_half_its_capacity(make_point: MakePoint) -> None:
    """M/M/1 has a latency of 1 / (capacity - rate); its power is greatest at half load (Kleinrock 1979)."""
    capacity = 1000
    rates = range(100, 1000, 100)
    points = [make_point(OpenLoop(rate), rate=rate, latency_s=1 / (capacity - rate)) for rate in rates]
    knee = find_knee(points)
    assert knee is not None
    assert knee.loop == OpenLoop(500)


def test_the_knee_of_a_closed_loop_is_where_the_server_is_just_full(make_point: MakePoint) -> None:
    """Eight concurrent requests fit; beyond that latency doubles without more throughput."""
    points = [
        make_point(ClosedLoop(count), rate=min(count, 8) * 100, latency_s=max(count, 8) / 800)
        for count in (1, 2, 4, 8, 16, 32)
    ]
    knee = find_knee(points)
    assert knee is not None
    assert knee.loop == ClosedLoop(8)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1e-3, 1.0), st.integers(0, 3)), min_size=1, max_size=8),
    st.floats(1e-3, 1.0),
)
def test_the_load_for_a_p99_limit_meets_it(
    make_point: MakePoint, measured: list[tuple[int, float, int]], limit_s: float
) -> None:
    """Within the limit, without failures, and the fastest such point."""
    points = [
        make_point(ClosedLoop(number), rate=rate, latency_s=latency_s, errors=errors)
        for number, (rate, latency_s, errors) in enumerate(measured, start=1)
    ]
    within = [each for each in points if each.latencies.quantile_s(0.99) <= limit_s and not each.errors]
    best = holding(points, limit_s)
    assert (best is None) == (not within)
    if best is not None:
        assert best in within
        assert best.requests_per_s == max(each.requests_per_s for each in within)


def test_advice_for_a_p99_limit_names_the_load_that_meets_it(make_point: MakePoint) -> None:
    """Both numbers: the limit and what was measured."""
    points = [make_point(ClosedLoop(count), rate=100 + count, latency_s=count / 100) for count in (1, 2, 4)]
    assert "p99 stays within 25 ms up to 2 in flight: 102 requests/s at p99 20" in advise(points, 0.025)[0]
    assert "p99 was never within 5 ms: the lowest was 9.99 ms at 1 in flight" in advise(points, 0.005)[0]


def test_advice_says_that_a_busy_client_measured_itself(make_point: MakePoint) -> None:
    """It comes first, because it invalidates the rest."""
    advice = advise([make_point(ClosedLoop(4), rate=10, latency_s=0.1, busy=0.97)])
    assert "97% of a core" in advice[0]
    assert "--processes" in advice[0]


def test_advice_names_the_stage_where_most_time_goes(make_point: MakePoint) -> None:
    """From the server's metrics; the time outside all stages counts as transport."""
    for stage, hint in (
        ("decode", "smaller images"),
        ("queue", "more workers"),
        ("transport", "each request"),
    ):
        stages = {"decode": 0.01, "queue": 0.01, "infer": 0.01, stage: 0.06}
        stages.pop("transport", None)
        facts = ServerFacts(cores=0.5, batch_images=3.25, stages_s=stages)
        advice = advise([make_point(ClosedLoop(4), rate=100, latency_s=0.1, server=facts)])
        assert "0.5 cores, 5 CPU-ms per request, in batches of 3.2 images" in advice[0]
        assert hint in advice[1]


def test_without_successful_requests_there_is_no_advice_on_speed(make_point: MakePoint) -> None:
    """All quantiles are NaN, and nothing crashes."""
    points = [make_point(ClosedLoop(1), rate=0, latency_s=1.0, errors=7)]
    assert find_knee(points) is None
    assert advise(points, 0.1) == ["No request succeeded, so there are no latencies to report."]
