"""Admission control."""

import asyncio
import math
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
        match=r"^11 pending images of this model take about 1\.10 s, the limit is 1 s: retry later$",
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


@pytest.mark.parametrize("left_s", [0.45, math.inf])
def test_what_can_be_answered_before_its_deadline_is_admitted(admission: Admit, left_s: float) -> None:
    """Twenty images of 10 ms take 0.2 s, with a margin of a half, and the own batch of eight takes 0.08 s."""
    control, backlog = admission(), Backlog(run_s=0.01, max_batch_size=8)
    control.enter(20, backlog)
    control.enter(1, backlog, time.monotonic() + left_s)


def test_what_cannot_be_answered_before_its_deadline_is_refused(admission: Admit) -> None:
    """The message has the images, their time and what is left."""
    control, backlog = admission(), Backlog(run_s=0.01, max_batch_size=8)
    control.enter(20, backlog)
    message = (
        r"^20 pending images of this model take about 0\.20 s, and the call has 0\.3\d s left: retry later$"
    )
    with pytest.raises(Overloaded, match=message):
        control.enter(1, backlog, time.monotonic() + 0.35)
    assert control.pending == 20


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
