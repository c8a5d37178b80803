"""The estimates of how fast a version works off its images."""

import pytest

from serving.batching.backlog import Backlog


def test_the_estimate_is_the_time_of_an_image_in_batches_as_they_are_now() -> None:
    """Full batches count by their images: after single images, a few of them correct the estimate."""
    backlog = Backlog()
    for _ in range(100):
        backlog.record_run(1, 0.002)
    assert backlog.run_s == pytest.approx(0.002)
    for _ in range(3):
        backlog.record_run(32, 0.004)
    assert backlog.run_s < 0.0003


def test_the_first_run_replaces_what_was_known_before() -> None:
    """CPU time says little of a network that runs elsewhere."""
    backlog = Backlog(run_s=0.00001)
    backlog.record_run(2, 0.04)
    assert backlog.run_s == pytest.approx(0.02)


def test_a_process_that_was_stopped_does_not_count_as_slow() -> None:
    """One run of a minute changes the estimate by a small factor, and the next ones repair it."""
    backlog = Backlog()
    for _ in range(100):
        backlog.record_run(1, 0.002)
        backlog.record_decode(0.002)
    backlog.record_run(1, 60.0)
    backlog.record_decode(60.0)
    assert backlog.run_s == pytest.approx(0.0038, rel=0.01)
    assert backlog.decode_s == pytest.approx(0.0038, rel=0.01)
    for _ in range(40):
        backlog.record_run(1, 0.002)
    assert backlog.run_s == pytest.approx(0.002, rel=0.02)


def test_a_network_that_becomes_slower_for_good_is_noticed_within_some_batches() -> None:
    """The limit on one step does not hide that each image takes fifty times as long."""
    backlog = Backlog()
    for _ in range(100):
        backlog.record_run(1, 0.002)
    for _ in range(40):
        backlog.record_run(1, 0.1)
    assert backlog.run_s == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    ("pending", "images", "batches"),
    [(0, 1, 1 / 4), (2, 1, 3 / 4), (9, 1, 1), (0, 4, 1), (9, 12, 3)],
)
def test_the_run_of_a_request_is_that_of_the_batch_that_it_joins(
    pending: int, images: int, batches: float
) -> None:
    """At most the largest batch, unless the request alone has several."""
    backlog = Backlog(images=pending, run_s=0.25, max_batch_size=4)
    assert backlog.batch_s(images) == batches
