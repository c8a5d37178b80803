"""The estimates of how fast a version works off its images."""

import pytest

from serving.batching.backlog import Backlog


def test_the_estimate_is_the_time_of_an_image_in_batches_as_they_are_now() -> None:
    """Full batches count by their images: after single images, a few of them correct the estimate."""
    backlog = Backlog()
    for _ in range(100):
        backlog.record_run(1, 0.0005)
    assert backlog.run_s == pytest.approx(0.0005)
    for _ in range(3):
        backlog.record_run(32, 0.0009)
    assert backlog.run_s < 0.0001


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
    assert backlog.batch_s(1) == pytest.approx(0.0038, rel=0.01)
    assert backlog.decode_s == pytest.approx(0.0026, rel=0.01)
    for _ in range(40):
        backlog.record_run(1, 0.002)
    assert backlog.batch_s(1) == pytest.approx(0.002, rel=0.02)


def test_a_network_that_becomes_slower_for_good_is_noticed_within_some_batches() -> None:
    """The limit on one step does not hide that each image takes fifty times as long."""
    backlog = Backlog()
    for _ in range(100):
        backlog.record_run(1, 0.002)
    for _ in range(40):
        backlog.record_run(1, 0.1)
    assert backlog.batch_s(1) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("start_s", [0.0, 0.02, 0.2])
def test_what_each_batch_takes_is_told_from_what_each_image_takes(start_s: float) -> None:
    """Batches of some sizes are enough to predict others."""
    backlog = Backlog(max_batch_size=32)
    for size in (6, 9, 12, 16) * 5:
        backlog.record_run(size, start_s + size * 0.005)
    assert backlog.batch_s(32) == pytest.approx(start_s + 32 * 0.005, rel=0.1)
    assert backlog.batch_s(1) == pytest.approx(start_s + 0.005, abs=0.01)


def test_a_request_does_not_join_the_batch_that_runs() -> None:
    """It is in the next one, with those that are queued."""
    backlog = Backlog(images=6, running_images=4, run_s=0.25, max_batch_size=4)
    assert backlog.batch_s(1) == 3 / 4


def test_batches_of_one_size_say_that_larger_ones_take_longer_but_not_by_how_much() -> None:
    """Something in the middle, so that larger batches are tried."""
    backlog = Backlog(max_batch_size=32)
    for _ in range(20):
        backlog.record_run(4, 0.1)
    assert backlog.batch_s(4) == pytest.approx(0.1)
    assert 0.1 < backlog.batch_s(32) < 0.8


def test_a_network_that_becomes_slower_is_noticed_sooner_than_one_that_becomes_faster() -> None:
    """Calls that are refused can be sent to another server; those that are late have cost a run."""
    slower, faster = Backlog(), Backlog()
    for _ in range(20):
        slower.record_run(1, 0.1)
        faster.record_run(1, 0.2)
    for _ in range(4):
        slower.record_run(1, 0.2)
        faster.record_run(1, 0.1)
    assert slower.batch_s(1) > 0.17
    assert 0.16 < faster.batch_s(1) < 0.18


class TestWait:
    """When the batch begins that a new image would join."""

    def test_it_joins_the_first_batch_that_has_room(self) -> None:
        """It waits for the full ones before it, and for the images of its own."""
        backlog = Backlog(start_s=0.2, run_s=0.01, max_batch_size=8)
        waits_s = []
        for backlog.images in (0, 7, 8, 15, 16):
            waits_s.append(backlog.wait_s(0.0))
        assert waits_s == pytest.approx([0.0, 0.07, 0.28, 0.35, 0.56])

    def test_what_has_run_of_the_running_batch_is_not_waited_for(self) -> None:
        """The queue may be a whole batch long at its end, however long the network takes."""
        backlog = Backlog(start_s=0.2, run_s=0.01, max_batch_size=8, images=8)
        backlog.running_images, backlog.running_since_s = 8, 100.0
        assert backlog.wait_s(100.0) == pytest.approx(0.28)
        assert backlog.wait_s(100.2) == pytest.approx(0.08)
        backlog.images += 8
        assert backlog.wait_s(100.2) == pytest.approx(0.36)

    def test_a_run_that_hangs_takes_longer_and_longer(self) -> None:
        """It is not known how long, and nothing more should wait for it."""
        backlog = Backlog(run_s=0.1, images=1)
        backlog.running_images, backlog.running_since_s = 1, 100.0
        assert backlog.wait_s(105.0) == pytest.approx(4.9)


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
