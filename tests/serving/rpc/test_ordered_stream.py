"""Ordered answers under random arrivals, durations, failures, slow consumers and cancellations."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import DeadlineExceeded
from serving.rpc.ordered_stream import answer_in_order


@dataclass(frozen=True)
class Request:
    """One request, drawn by Hypothesis. Times are iterations of the event loop."""

    pause: int  # before it arrives
    work: int
    rest: int  # before the answer after it is taken
    fails: bool = False


@dataclass
class Work:
    """Answers requests with their place, and records how many are in flight."""

    running: int = 0
    most: int = 0
    begun: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)

    async def answer(self, place_and_request: tuple[int, Request]) -> int:
        """Return the request's place, or raise an error."""
        place, request = place_and_request
        self.begun.append(place)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await _turns(request.work)
        except asyncio.CancelledError:
            self.cancelled.append(place)
            raise
        finally:
            self.running -= 1
        if request.fails:
            raise ValueError(place)
        return place


def _pipelined(*arguments: Any, **options: Any) -> AsyncGenerator[int, None]:
    """Yield the answers one by one."""

    async def each() -> AsyncGenerator[int, None]:
        async with aclosing(answer_in_order(*arguments, **options)) as groups:
            async for group in groups:
                assert group
                for answer in group:
                    yield answer

    return each()


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def _arrivals(requests: list[Request], read: list[int]) -> AsyncIterator[tuple[int, Request]]:
    for place, request in enumerate(requests):
        await _turns(request.pause)
        read.append(place)
        yield place, request


TURNS = st.integers(0, 6)
REQUESTS = st.lists(st.builds(Request, pause=TURNS, work=TURNS, rest=TURNS), max_size=20)
LIMITS = st.integers(1, 5)


@settings(max_examples=200, deadline=None)
@given(requests=REQUESTS, max_in_flight=LIMITS)
async def test_every_request_gets_its_own_answer_in_order(
    requests: list[Request], max_in_flight: int
) -> None:
    """None is lost or repeated, and no more than allowed run or wait for the consumer."""
    work = Work()
    read: list[int] = []
    taken: list[int] = []
    answers = _pipelined(_arrivals(requests, read), work.answer, max_in_flight=max_in_flight)
    async for place in answers:
        assert len(read) - len(taken) <= max_in_flight
        taken.append(place)
        await _turns(requests[place].rest)
        assert len(read) - len(taken) < max_in_flight or len(read) == len(requests)

    assert taken == list(range(len(requests)))
    assert work.most <= max_in_flight
    assert work.running == 0


@settings(max_examples=200, deadline=None)
@given(requests=REQUESTS, max_in_flight=LIMITS, taken=st.integers(0, 20))
async def test_closing_early_cancels_running_work(
    requests: list[Request], max_in_flight: int, taken: int
) -> None:
    """After aclose, at any moment, nothing runs and nothing more is read."""
    work = Work()
    read: list[int] = []
    answers = _pipelined(_arrivals(requests, read), work.answer, max_in_flight=max_in_flight)
    async with aclosing(answers):
        for place in range(min(taken, len(requests))):
            assert await anext(answers) == place
    begun = len(read)
    await _turns(20)

    assert (work.running, len(read)) == (0, begun)


@settings(max_examples=200, deadline=None)
@given(requests=REQUESTS, max_in_flight=LIMITS, after=st.integers(0, 30))
async def test_a_cancelled_consumer_cancels_running_work(
    requests: list[Request], max_in_flight: int, after: int
) -> None:
    """The same if the consuming task is cancelled, at any moment."""
    work = Work()
    read: list[int] = []

    async def take() -> None:
        answers = _pipelined(_arrivals(requests, read), work.answer, max_in_flight=max_in_flight)
        async with aclosing(answers):
            async for place in answers:
                await _turns(requests[place].rest)

    task = asyncio.create_task(take())
    await _turns(after)
    task.cancel()
    await asyncio.wait([task])
    begun = len(read)
    await _turns(20)

    assert (work.running, len(read)) == (0, begun)


@pytest.mark.parametrize("between", range(6))
async def test_a_consumer_that_is_cancelled_twice_cancels_running_work(between: int) -> None:
    """A deadline and a lost client can come together: the second does not interrupt the first one."""
    work = Work()
    requests = [Request(pause=0, work=1000, rest=0)] * 3

    async def take() -> None:
        async with aclosing(_pipelined(_arrivals(requests, []), work.answer, max_in_flight=3)) as answers:
            await anext(answers)

    task = asyncio.create_task(take())
    await _turns(10)
    assert work.running == 3
    task.cancel()
    await _turns(between)
    task.cancel()
    await asyncio.wait([task])
    await _turns(20)

    assert (work.running, sorted(work.cancelled)) == (0, [0, 1, 2])


@settings(max_examples=200, deadline=None)
@given(requests=REQUESTS, max_in_flight=LIMITS, bad=st.integers(0, 19))
async def test_an_error_is_raised_at_its_turn(requests: list[Request], max_in_flight: int, bad: int) -> None:
    """All answers before it are yielded; those after it are cancelled."""
    if bad < len(requests):
        requests[bad] = Request(requests[bad].pause, requests[bad].work, 0, fails=True)
    work = Work()
    read: list[int] = []
    taken: list[int] = []
    answers = _pipelined(_arrivals(requests, read), work.answer, max_in_flight=max_in_flight)
    try:
        async for place in answers:
            taken.append(place)  # noqa: PERF401 - what was taken before the error counts
    except ValueError as error:
        assert error.args == (bad,)  # noqa: PT017 - whether it comes depends on what is drawn

    assert taken == list(range(min(bad, len(requests))))
    assert work.running == 0


async def test_requests_run_concurrently() -> None:
    """The first ends last, and delays only the answers behind it."""
    ended: list[int] = []
    may_end = asyncio.Event()

    async def answer(place: int) -> int:
        if place == 0:
            await may_end.wait()
        ended.append(place)
        if place == 3:
            may_end.set()
        return place

    answers = _pipelined(_numbers(4), answer, max_in_flight=4)

    assert [place async for place in answers] == [0, 1, 2, 3]
    assert ended == [1, 2, 3, 0]


async def _numbers(end: int | None = None) -> AsyncIterator[int]:
    for number in count() if end is None else range(end):
        yield number


async def test_answers_that_are_ready_together_are_yielded_together() -> None:
    """While the first runs, those behind it wait; then all are one group."""
    may_end = asyncio.Event()

    async def answer(place: int) -> int:
        if place == 0:
            await may_end.wait()
        return place

    groups = answer_in_order(_numbers(5), answer, max_in_flight=4)
    first = asyncio.create_task(anext(groups))
    await _turns(10)
    may_end.set()

    assert await first == [0, 1, 2, 3]
    assert [group async for group in groups] == [[4]]


async def test_reading_stops_while_answers_are_not_consumed() -> None:
    """An endless sender is not read beyond the limit, even if answers are fast."""
    read: list[int] = []

    async def answer(number: int) -> int:
        read.append(number)
        return number

    answers = _pipelined(_numbers(), answer, max_in_flight=3)
    async with aclosing(answers):
        assert await anext(answers) == 0
        await _turns(50)
        assert read == [0, 1, 2]
        assert await anext(answers) == 1
        await _turns(50)
        assert read == [0, 1, 2, 3]


async def test_a_read_error_is_raised_after_the_answers() -> None:
    """Requests that were read before it are answered."""

    async def broken() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ConnectionResetError

    async def answer(number: int) -> int:
        await asyncio.sleep(0)
        return number

    answers = _pipelined(broken(), answer, max_in_flight=4)
    taken = [await anext(answers), await anext(answers)]

    with pytest.raises(ConnectionResetError):
        await anext(answers)
    assert taken == [1, 2]


async def test_the_deadline_ends_a_silent_stream() -> None:
    """Also while the sender sends nothing."""

    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def answer(number: int) -> int:
        return number

    answers = _pipelined(silent(), answer, max_in_flight=4, deadline_s=time.monotonic() + 0.05)
    assert await anext(answers) == 1

    with pytest.raises(DeadlineExceeded, match="before the stream had ended"):
        await anext(answers)
