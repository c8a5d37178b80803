"""What a version has done, read from the metrics."""

from serving.metrics.recorder import Metrics
from serving.metrics.triton_statistics import TimedCount


def test_statistics_are_those_of_each_version() -> None:
    """Requests, images, runs by size, failures by reason, and when the engine last ran."""
    metrics = Metrics()
    first, second = metrics.version("digits", 1), metrics.version("digits", 2)
    first.decoded(0.5)
    first.ran(2, 0.25, [0.5, 1.0])
    first.ran(2, 0.75, [0.0])
    first.ran(1, 0.125, [0.0])
    first.ranked(0.125)
    first.request_ended(2, 2.0)
    first.request_failed("OVERLOADED", 0.25)
    first.request_failed("OVERLOADED", 0.25)
    second.request_ended(1, 1.0)

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


def test_a_version_that_is_only_known_has_done_nothing() -> None:
    """Other metrics with the labels of a version are no requests."""
    metrics = Metrics()
    metrics.version_state.labels("digits", "1", "refused").set(1)

    statistics = metrics.statistics()["digits", "1"]

    assert (statistics.success, statistics.run_count, statistics.last_run_s) == (TimedCount(), 0, 0)
