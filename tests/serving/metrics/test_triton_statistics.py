"""Statistics of versions, computed from the metrics."""

from serving.metrics.recorder import Metrics
from serving.metrics.triton_statistics import TimedCount


def test_statistics_are_those_of_each_version() -> None:
    """Requests, images, runs by size, failures by reason, and when the engine last ran."""
    metrics = Metrics()
    first, second = metrics.version("digits", 1), metrics.version("digits", 2)
    first.record_decode(0.5)
    first.record_run(2, 0.25, [0.5, 1.0])
    first.record_run(2, 0.75, [0.0])
    first.record_run(1, 0.125, [0.0])
    first.record_ranking(0.125)
    first.record_success(2, 2.0)
    first.record_failure("OVERLOADED", 0.25)
    first.record_failure("OVERLOADED", 0.25)
    second.record_success(1, 1.0)

    statistics = metrics.statistics()

    one = statistics["digits", "1"]
    assert (one.success, one.failure) == (TimedCount(1, 2.0), TimedCount(2, 0.5))
    assert (one.decode, one.queue, one.rank) == (TimedCount(1, 0.5), TimedCount(4, 1.5), TimedCount(1, 0.125))
    assert one.infer == TimedCount(4, 2 * 0.25 + 0.75 + 0.125)
    assert one.runs == {2: TimedCount(2, 1.0), 1: TimedCount(1, 0.125)}
    assert (one.run_count, one.run_images) == (3, 5)
    assert one.failures == {"OVERLOADED": 2}
    assert one.last_run_s > 1.7e9
    assert statistics["digits", "2"].success == TimedCount(1, 1.0)
    assert (statistics["digits", "2"].runs, statistics["digits", "2"].last_run_s) == ({}, 0)


def test_a_version_without_requests_has_zeros() -> None:
    """A version that only has a state is listed."""
    metrics = Metrics()
    metrics.version_state.labels("digits", "1", "refused").set(1)

    statistics = metrics.statistics()["digits", "1"]

    assert (statistics.success, statistics.run_count, statistics.last_run_s) == (TimedCount(), 0, 0)
