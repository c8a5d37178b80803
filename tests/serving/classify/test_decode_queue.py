"""The order in which images are decoded."""

import time
from dataclasses import dataclass, field

import pytest

from serving.batching.backlog import Backlog
from serving.classify.decode_queue import DecodeQueue


@dataclass
class _Job:
    name: str
    is_wanted: bool = True
    arrived_s: float = field(default_factory=time.monotonic)


def _take(queue: DecodeQueue[_Job], count: int) -> str:
    """The names of the next jobs."""
    jobs = (queue.take() for _ in range(count))
    return "".join(job.name for job in jobs if job is not None)


def test_a_version_with_many_images_does_not_delay_another() -> None:
    """Versions whose images take equally long take turns, and each is served in order."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=1)
    busy, other = Backlog(decode_s=0.01), Backlog(decode_s=0.01)
    for name in "abcdef":
        queue.put(busy, _Job(name))
    assert _take(queue, 2) == "ab"
    for name in "XY":
        queue.put(other, _Job(name))
    assert _take(queue, 9) == "XcYdef"


def test_versions_share_the_time_and_not_the_number_of_images() -> None:
    """While one decodes an image of 50 ms, the other decodes fifty of 1 ms."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=1)
    slow, fast = Backlog(decode_s=0.05), Backlog(decode_s=0.001)
    for _ in range(1000):
        queue.put(slow, _Job("s"))
        queue.put(fast, _Job("f"))
    taken = _take(queue, 510)
    assert taken.count("s") == pytest.approx(10, abs=1)


def test_a_version_that_comes_back_has_no_credit_for_the_time_in_which_it_was_idle() -> None:
    """It takes turns with the others from then on."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=1)
    first, second = Backlog(decode_s=0.01), Backlog(decode_s=0.01)
    for _ in range(100):
        queue.put(first, _Job("a"))
    assert _take(queue, 50) == "a" * 50
    for _ in range(50):
        queue.put(second, _Job("B"))
    assert _take(queue, 20).count("B") == pytest.approx(10, abs=1)


def test_one_image_after_another_is_not_served_before_those_that_wait() -> None:
    """A version that sends the next image when it has the last answer pays for each of them."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=1)
    waiting, one_by_one = Backlog(decode_s=0.001), Backlog(decode_s=0.05)
    for _ in range(200):
        queue.put(waiting, _Job("w"))
    queue.put(one_by_one, _Job("S"))
    taken = ""
    for _ in range(110):
        taken += _take(queue, 1)
        if taken[-1] == "S":
            queue.put(one_by_one, _Job("S"))
    assert taken.count("S") == pytest.approx(3, abs=1)


def test_images_of_callers_that_have_left_are_skipped_and_cost_their_version_nothing() -> None:
    """The next image that is wanted comes at once; a queue without one is empty."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=1)
    backlog = Backlog(decode_s=0.01)
    for _ in range(5):
        queue.put(backlog, _Job("x", is_wanted=False))
    queue.put(backlog, _Job("a"))
    assert _take(queue, 1) == "a"
    assert queue.take() is None
    assert backlog.decoded_until_s == pytest.approx(0.01)


def test_the_waiting_time_is_that_of_a_share_of_the_threads() -> None:
    """Ten images of 20 ms on two threads that two versions share take 0.2 s."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=2)
    backlog, other = Backlog(decode_s=0.02), Backlog(decode_s=5.0)
    assert queue.wait_s(backlog) == 0
    for _ in range(10):
        queue.put(backlog, _Job("a"))
    assert queue.wait_s(backlog) == pytest.approx(0.1)
    queue.put(other, _Job("b"))
    assert queue.wait_s(backlog) == pytest.approx(0.2)


def test_a_version_whose_first_image_has_waited_long_is_slow_before_that_is_measured() -> None:
    """The threads were stopped for two seconds: a new image waits at least as long."""
    queue: DecodeQueue[_Job] = DecodeQueue(threads=1)
    backlog = Backlog(decode_s=0.001)
    queue.put(backlog, _Job("a", arrived_s=time.monotonic() - 2))
    assert queue.wait_s(backlog) >= 2
