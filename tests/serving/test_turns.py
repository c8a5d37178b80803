"""Slices of work within the limit of a turn, whoever needs them."""

import asyncio
import itertools
from collections import Counter

from serving.turns import Turns
from tests.serving.counting_turns import Loop


async def test_no_turn_has_more_work_than_its_limit() -> None:
    """Ten slices of each of ten tasks: three fit into a turn, and tasks run round robin."""
    turns, loop = Turns(100), Loop()
    ran: list[tuple[int, int]] = []  # turn and task

    async def work(task: int) -> None:
        for _ in range(10):
            await turns.take(30)
            ran.append((loop.turn, task))

    await asyncio.gather(*map(work, range(10)))
    loop.stop()
    slices = Counter(turn for turn, _ in ran)
    assert max(slices.values()) <= 3
    assert len(slices) <= 40
    later = [task for _, task in ran[10:60]]
    assert [(task - later[0]) % 10 for task in later] == [*range(10)] * 5


async def test_work_that_fits_does_not_wait() -> None:
    """The usual case."""
    turns, loop = Turns(100), Loop()
    for _ in range(3):
        await turns.take(30)
    assert loop.turn == 1
    await turns.take(30)
    assert loop.turn > 1
    loop.stop()


async def test_a_long_slice_has_a_turn_for_itself() -> None:
    """It does not wait for ever, and others wait for it."""
    turns, loop = Turns(100), Loop()
    ran: list[int] = []

    async def work(cost_us: int) -> None:
        await turns.take(cost_us)
        ran.append(loop.turn)

    await asyncio.gather(*map(work, (500, 10, 500, 10)))
    loop.stop()
    assert len(set(ran)) == 4


async def test_after_a_long_slice_others_have_as_many_turns_without() -> None:
    """A call that takes several turns would otherwise wait for a long slice in each of them."""
    turns, loop = Turns(100), Loop()
    ran: list[int] = []

    async def work() -> None:
        await turns.take(500)
        ran.append(loop.turn)

    await asyncio.gather(work(), work(), work())
    loop.stop()
    assert min(after - before for before, after in itertools.pairwise(ran)) >= 5


async def test_a_cancelled_task_loses_its_turn_only() -> None:
    """Those behind it go on."""
    turns = Turns(100)
    ran: list[int] = []

    async def work(task: int) -> None:
        await turns.take(100)
        ran.append(task)

    tasks = [asyncio.create_task(work(task)) for task in range(5)]
    await asyncio.sleep(0)
    for task in (1, 3):
        tasks[task].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ran == [0, 2, 4]
    await asyncio.wait_for(work(5), 10)
    assert ran == [0, 2, 4, 5]
