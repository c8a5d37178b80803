"""The batching policy as a pure function: it needs no clock and no event loop."""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.batching.policy import BatchPolicy, Decision, QueuedRequest, take_batch

LARGEST = 8
# Multiples of 1/8: sums and differences of times are exact.
TIMES_S = st.integers(0, 80).map(lambda eighths: eighths / 8)
NOW_S = TIMES_S.map(lambda time_s: time_s + 10)  # no request arrives later than now
DEADLINES_S = st.integers(0, 200).map(lambda eighths: eighths / 8) | st.just(math.inf)
SIZES = st.integers(1, LARGEST)


@dataclass(frozen=True)
class Entry:
    """One queued request, drawn by Hypothesis."""

    size: int
    arrived_s: float
    deadline_s: float
    abandoned: bool


ENTRIES = st.lists(st.builds(Entry, SIZES, TIMES_S, DEADLINES_S, st.booleans()), max_size=12).map(
    lambda entries: sorted(entries, key=lambda entry: entry.arrived_s)
)
POLICIES = st.builds(BatchPolicy, st.integers(LARGEST, 2 * LARGEST), TIMES_S.filter(bool) | st.just(0.0))

Queue = Callable[..., list[QueuedRequest]]


@pytest.fixture(scope="module")
def queue() -> Iterator[Queue]:
    """Create a queue of entries."""
    loop = asyncio.new_event_loop()

    def make(*entries: Entry) -> list[QueuedRequest]:
        waiting = [
            QueuedRequest(
                np.zeros((each.size, 1, 1, 1), np.uint8),
                each.arrived_s,
                each.deadline_s,
                asyncio.Future(loop=loop),
                each.arrived_s,
            )
            for each in entries
        ]
        for each, drawn in zip(waiting, entries, strict=True):
            if drawn.abandoned:
                each.result.cancel()
        return waiting

    yield make
    loop.close()


@given(entries=ENTRIES, now_s=NOW_S, policy=POLICIES)
def test_every_live_request_has_one_place_and_keeps_its_order(
    queue: Queue, entries: list[Entry], now_s: float, policy: BatchPolicy
) -> None:
    """It is expired, in the batch, or in the rest; batch and rest keep the order of the queue."""
    waiting = queue(*entries)
    decision = take_batch(waiting, now_s, policy)
    assert not any(each.abandoned for each in decision.batch + decision.expired)
    assert all(each.deadline_s <= now_s for each in decision.expired)
    assert all(each.deadline_s > now_s for each in decision.batch)
    placed = decision.batch + decision.expired + decision.rest
    assert len({id(each) for each in placed}) == len(placed)
    assert {each for each in waiting if not each.abandoned} <= set(placed)
    places = [waiting.index(each) for each in decision.batch + decision.rest]
    assert places == sorted(places)


@given(entries=ENTRIES, now_s=NOW_S, policy=POLICIES)
def test_a_batch_is_as_large_as_the_order_allows_and_never_too_large(
    queue: Queue, entries: list[Entry], now_s: float, policy: BatchPolicy
) -> None:
    """A batch never exceeds max_batch_size, and the first request left behind would not have fitted."""
    decision = take_batch(queue(*entries), now_s, policy)
    assert _total(decision.batch) <= policy.max_batch_size
    if decision.batch and decision.rest:
        assert _total(decision.batch) + decision.rest[0].size > policy.max_batch_size


@given(entries=ENTRIES, now_s=NOW_S)
def test_without_a_delay_no_request_waits_for_others(
    queue: Queue, entries: list[Entry], now_s: float
) -> None:
    """By default all queued requests run now, even if they are few."""
    decision = take_batch(queue(*entries), now_s, BatchPolicy(LARGEST))
    anyone = any(not entry.abandoned and entry.deadline_s > now_s for entry in entries)
    assert bool(decision.batch) == anyone
    assert decision.wait_s == 0


@example(
    entries=[Entry(1, 0.0, 0.5, abandoned=False), Entry(1, 0.25, math.inf, abandoned=False)],
    now_s=0.25,
    policy=BatchPolicy(LARGEST, 0.5),
)
@given(entries=ENTRIES, now_s=NOW_S, policy=POLICIES)
def test_a_delay_lasts_exactly_until_the_oldest_has_waited_for_it(
    queue: Queue, entries: list[Entry], now_s: float, policy: BatchPolicy
) -> None:
    """Only a batch that could grow waits, and exactly until oldest + delay."""
    waiting = queue(*entries)
    decision = take_batch(waiting, now_s, policy)
    alive = [each for each in waiting if not each.abandoned and each.deadline_s > now_s]
    could_grow = _total(alive) < policy.max_batch_size
    until_s = alive[0].arrived_s + policy.max_queue_delay_s if alive else now_s
    if alive and could_grow and until_s > now_s:
        assert decision == Decision([], decision.expired, alive, until_s - now_s)
        if alive[0].deadline_s > until_s:  # else the next oldest decides
            assert take_batch(waiting, until_s, policy).wait_s == 0
    else:
        assert decision.wait_s == 0
        assert bool(decision.batch) == bool(alive)


@given(
    arrivals=st.lists(st.lists(SIZES, max_size=4), min_size=1, max_size=20),
    policy=POLICIES,
    steps_s=st.lists(TIMES_S, min_size=20, max_size=20),
)
def test_the_oldest_is_never_overtaken(
    queue: Queue, arrivals: list[list[int]], policy: BatchPolicy, steps_s: list[float]
) -> None:
    """Each decision takes the oldest request or names the time at which the next one will."""
    now_s, waiting = 0.0, []
    for sizes, step_s in zip(arrivals, steps_s, strict=False):
        waiting += queue(*[Entry(size, now_s, math.inf, abandoned=False) for size in sizes])
        decision = take_batch(waiting, now_s, policy)
        if decision.batch:
            assert decision.batch[0] is waiting[0]
        elif waiting:
            assert 0 < decision.wait_s == waiting[0].arrived_s + policy.max_queue_delay_s - now_s
        waiting = decision.rest
        now_s += step_s


@given(sizes=st.lists(SIZES, min_size=1, max_size=30), policy=POLICIES)
def test_a_queue_needs_at_most_one_decision_per_request(
    queue: Queue, sizes: list[int], policy: BatchPolicy
) -> None:
    """Every decision that is due makes progress."""
    waiting = queue(*[Entry(size, 0, math.inf, abandoned=False) for size in sizes])
    for _ in sizes:
        waiting = take_batch(waiting, policy.max_queue_delay_s, policy).rest
    assert not waiting


def test_a_full_batch_does_not_wait(queue: Queue) -> None:
    """With a delay of 9 s, a full batch runs at once."""
    waiting = queue(*[Entry(4, 0, math.inf, abandoned=False)] * 2)
    assert take_batch(waiting, 0, BatchPolicy(8, 9.0)).batch == waiting


def test_a_batch_that_a_large_request_blocks_does_not_wait(queue: Queue) -> None:
    """Requests behind the large one cannot join, so waiting would not help."""
    small, large, last = waiting = queue(*[Entry(size, 0, math.inf, abandoned=False) for size in (1, 8, 1)])
    decision = take_batch(waiting, 0, BatchPolicy(8, 9.0))
    assert decision == Decision([small], [], [large, last])


def test_a_deadline_that_is_now_has_expired(queue: Queue) -> None:
    """At its deadline, an answer is already useless."""
    waiting = queue(Entry(1, 0, 5.0, abandoned=False))
    assert take_batch(waiting, 5.0, BatchPolicy(8)).expired == waiting


def _total(waiting: list[QueuedRequest]) -> int:
    return sum(each.size for each in waiting)
