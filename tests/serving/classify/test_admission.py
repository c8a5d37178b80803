"""Admission control."""

import asyncio
import math
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching.backlog import Backlog
from serving.bundle import ImageLimits
from serving.classify.admission import Admission
from serving.classify.preprocessing import Preprocessor
from serving.errors import Overloaded

_PREPROCESSOR = Preprocessor(ImageLimits(), 1)  # it never has an image

Admit = Callable[..., Admission]


@pytest.fixture
def admission() -> Admit:
    """Admission control that admits a number of images for a number of seconds."""

    def made(limit: int = 1000, *, max_queue_s: float = 1.0) -> Admission:
        return Admission(limit, _PREPROCESSOR, max_queue_s=max_queue_s)

    return made


def test_the_limit_is_exact_and_the_message_has_all_numbers(admission: Admit) -> None:
    """Images up to the limit are admitted; one more is rejected."""
    control, backlog = admission(10), Backlog()
    control.enter(7, backlog)
    control.enter(3, backlog)
    with pytest.raises(
        Overloaded, match=r"^10 images are pending, 1 more would exceed the limit of 10: retry later$"
    ):
        control.enter(1, backlog)
    assert control.pending == backlog.images == 10


def test_check_rejects_only_if_no_image_would_be_admitted(admission: Admit) -> None:
    """Its message has the pending images and the limit."""
    control, backlog = admission(2), Backlog()
    control.enter(1, backlog)
    control.check()
    control.enter(1, backlog)
    with pytest.raises(Overloaded, match=r"^2 images are pending, the limit is 2: retry later$"):
        control.check()


@given(limit=st.integers(1, 20), sizes=st.lists(st.integers(1, 8), max_size=20))
def test_pending_is_the_sum_of_admitted_images_and_never_exceeds_the_limit(
    limit: int, sizes: list[int]
) -> None:
    """A rejected request takes no place, and a smaller one after it may be admitted."""
    control, backlog = Admission(limit, _PREPROCESSOR), Backlog()
    admitted: list[int] = []
    for size in sizes:
        try:
            control.enter(size, backlog)
        except Overloaded:
            assert sum(admitted) + size > limit
        else:
            admitted.append(size)
        assert control.pending == sum(admitted) <= limit
    for size in admitted:
        control.leave(size, backlog)
    assert control.pending == backlog.images == 0


def test_a_version_that_fills_all_places_leaves_some_for_others(admission: Admit) -> None:
    """While requests for another version come, an eighth is kept for it; alone it gets all of them."""
    control, busy, other = admission(80), Backlog(), Backlog()
    for _ in range(80):
        control.enter(1, busy)
    control.leave(11, busy)
    control.enter(1, other)
    with pytest.raises(
        Overloaded, match=r"^70 .* exceed the limit of 80, of which 10 are for other models: retry later$"
    ):
        control.enter(1, busy)
    for _ in range(9):
        control.enter(1, other)
    control.check()


def test_a_queue_that_takes_longer_than_the_limit_admits_no_more(admission: Admit) -> None:
    """The message has the images, their time and the limit, and the retry comes when they are worked off."""
    control, backlog = admission(max_queue_s=1.0), Backlog(run_s=0.1)
    for _ in range(11):
        control.enter(1, backlog)
    with pytest.raises(
        Overloaded,
        match=r"^11 images of this model are pending, and a new one would wait 1\.10 s; "
        r"the limit is 1 s: retry later$",
    ) as caught:
        control.enter(1, backlog)
    assert caught.value.retry_s == pytest.approx(1.1)
    control.leave(1, backlog)
    control.enter(1, backlog)


def test_a_slow_model_does_not_get_others_refused(admission: Admit) -> None:
    """Each version has its own queue."""
    control, slow, fast = admission(), Backlog(run_s=2.0), Backlog(run_s=0.001)
    control.enter(1, slow)
    with pytest.raises(Overloaded):
        control.enter(1, slow)
    for _ in range(500):
        control.enter(1, fast)


@pytest.mark.parametrize("left_s", [0.6, math.inf])
def test_what_can_be_answered_before_its_deadline_is_admitted(admission: Admit, left_s: float) -> None:
    """Twenty images of 10 ms take 0.2 s, and the own batch of eight 0.08 s; twice that is certain."""
    control, backlog = admission(), Backlog(run_s=0.01, max_batch_size=8)
    control.enter(20, backlog)
    control.enter(1, backlog, time.monotonic() + left_s)


def test_what_cannot_be_answered_before_its_deadline_is_refused(admission: Admit) -> None:
    """The message has the images, their time and what is left."""
    control, backlog = admission(), Backlog(run_s=0.01, max_batch_size=8)
    control.enter(20, backlog)
    message = (
        r"^20 images of this model are pending, and a new one would wait 0\.20 s; "
        r"the call has 0\.(29|30) s left: retry later$"
    )
    with pytest.raises(Overloaded, match=message):
        control.enter(1, backlog, time.monotonic() + 0.3)
    assert control.pending == 20


@pytest.mark.parametrize("deadline_s", [1.0, 10.0])
@pytest.mark.parametrize("start_s", [0.01, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("times_capacity", [1.2, 4.0])
def test_batches_stay_full_however_much_a_batch_takes_beside_its_images(
    start_s: float, deadline_s: float, times_capacity: float
) -> None:
    """Otherwise each image takes longer, fewer are admitted, and so on until batches have one image."""
    queue = _Queue(start_s=start_s, image_s=0.001)
    answered = queue.load(times_capacity, deadline_s=deadline_s, seconds=20.0)
    assert answered / queue.capacity(20.0) > 0.9
    assert queue.late <= 0.01 * answered


@pytest.mark.parametrize("deadline_s", [math.inf, 10.0])
def test_batches_of_a_slow_network_do_not_become_long_where_that_gains_nothing(deadline_s: float) -> None:
    """If only its images take time, a batch of 32 answers no more than one of 4, and later."""
    queue = _Queue(start_s=0.0, image_s=0.2)
    answered = queue.load(2.0, deadline_s=deadline_s, seconds=40.0)
    assert answered / queue.capacity(40.0) > 0.9
    assert queue.longest_run_s < 2.0


def test_few_calls_are_late_if_the_network_suddenly_takes_twice_as_long() -> None:
    """Other processes take its core. A queue that is longer than one batch must not use up the deadlines."""
    queue = _Queue(start_s=0.2, image_s=0.002, slow_after_s=10.0)
    answered = queue.load(4.0, deadline_s=1.0, seconds=20.0)
    assert queue.late <= 0.05 * answered
    assert answered / queue.capacity(15.0) > 0.9


class _Queue:
    """A network of known speed behind admission control, without time."""

    size = 32  # of the largest batch

    def __init__(self, *, start_s: float, image_s: float, slow_after_s: float = math.inf) -> None:
        self.late = 0
        self.longest_run_s = 0.0
        self._slow_after_s = slow_after_s
        self._start_s, self._image_s = start_s, image_s
        self._now_s = 0.0
        self._random = random.Random(3)  # noqa: S311 - arrival times
        self._backlog = Backlog(run_s=start_s + image_s, max_batch_size=self.size)
        self._admission = Admission(1024, _PREPROCESSOR, clock=lambda: self._now_s)
        self._queue: list[float] = []  # deadlines
        self._running: list[float] = []
        self._ends_s = math.inf

    def capacity(self, seconds: float) -> float:
        """What full batches would answer."""
        return seconds * self.size / (self._start_s + self._image_s * self.size)

    def load(self, times_capacity: float, *, deadline_s: float, seconds: float) -> int:
        """Send images at random times; return how many were answered in time."""
        calls_per_s, answered = times_capacity * self.capacity(1.0), 0
        arrives_s = self._random.expovariate(calls_per_s)
        while self._now_s < seconds:
            self._now_s = min(arrives_s, self._ends_s)
            if arrives_s > self._ends_s:
                answered += self._end_run()
                continue
            arrives_s += self._random.expovariate(calls_per_s)
            try:
                self._admission.enter(1, self._backlog, self._now_s + deadline_s)
            except Overloaded:
                continue
            self._queue.append(self._now_s + deadline_s)
            if not self._running:
                self._begin_run()
        return answered

    def _begin_run(self) -> None:
        self._running, self._queue = self._queue[: self.size], self._queue[self.size :]
        self._backlog.running_images, self._backlog.running_since_s = len(self._running), self._now_s
        duration_s = self._start_s + self._image_s * len(self._running)
        duration_s *= 2 if self._now_s > self._slow_after_s else 1
        self.longest_run_s = max(self.longest_run_s, duration_s)
        self._ends_s = self._now_s + duration_s * self._random.uniform(0.9, 1.1)

    def _end_run(self) -> int:
        self._backlog.record_run(len(self._running), self._now_s - self._backlog.running_since_s)
        self._backlog.running_images = 0
        in_time = sum(deadline_s >= self._now_s for deadline_s in self._running)
        self.late += len(self._running) - in_time
        for _ in self._running:
            self._admission.leave(1, self._backlog)
        self._running, self._ends_s = [], math.inf
        if self._queue:
            self._begin_run()
        return in_time


def test_an_idle_server_admits_every_request_and_so_measures_anew(admission: Admit) -> None:
    """A wrong estimate cannot refuse all images for ever."""
    control, backlog = admission(), Backlog(run_s=1000.0, decode_s=1000.0)
    control.enter(1, backlog, time.monotonic() + 0.1)


class TestStreams:
    """Requests of streams wait for their turn."""

    async def test_they_wait_until_the_queue_is_short(self, admission: Admit) -> None:
        """One place that becomes free in a short queue wakes one of them, in order."""
        control, backlog = admission(max_queue_s=1.0), Backlog(run_s=0.1)
        control.enter(2, backlog)
        assert not control.is_long(backlog)
        control.enter(1, backlog)
        assert control.is_long(backlog)
        first, second = (asyncio.ensure_future(control.turn(backlog)) for _ in range(2))
        await asyncio.sleep(0)
        control.leave(1, backlog)
        await asyncio.sleep(0)
        assert (first.done(), second.done()) == (True, False)
        assert await first
        control.leave(2, backlog)
        assert not await second  # the queue is empty

    async def test_calls_do_not_starve_them(self, admission: Admit) -> None:
        """While calls fill the queue again and again, every fourth place goes to a stream."""
        control, backlog = admission(max_queue_s=1.0), Backlog(run_s=0.1)
        control.enter(10, backlog)
        turns = [asyncio.ensure_future(control.turn(backlog)) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(12):
            control.leave(1, backlog)
            control.enter(1, backlog)
        await asyncio.sleep(0)
        assert [turn.done() for turn in turns] == [True, True, True, False, False]
        for turn in turns:
            turn.cancel()

    async def test_those_that_have_left_take_no_turn(self, admission: Admit) -> None:
        """A stream that was cancelled does not delay the next one, and an empty queue wakes all."""
        control, backlog = admission(max_queue_s=1.0), Backlog(run_s=0.1)
        control.enter(3, backlog)
        turns = [asyncio.ensure_future(control.turn(backlog)) for _ in range(4)]
        await asyncio.sleep(0)
        turns[0].cancel()
        await asyncio.sleep(0)
        control.leave(1, backlog)
        assert await turns[1]
        control.leave(2, backlog)
        assert await asyncio.gather(*turns[2:]) == [False, False]
