"""How many versions load at once, and what becomes of those that take too long."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import cast

import pytest

from serving.models.loads import Loads
from serving.models.versions import Version
from tests.serving.log_events import LogEvents
from tests.serving.until import until

HANGS = ("a", 1)
LONG_S = 3600.0


class Gated:
    """Loads versions that are only values; one waits until it is let go."""

    def __init__(self, *, fails: bool = False) -> None:
        self.gate = asyncio.Event()
        self.running: list[tuple[str, int]] = []
        self.threads: list[Executor] = []
        self.changed: list[str] = []
        self.late: list[str] = []
        self.versions = {(name, number): cast("Version", object()) for name in "ab" for number in (1, 2)}
        self._fails = fails

    async def __call__(self, name: str, number: int, threads: Executor) -> Version | None:
        """Load a version."""
        self.threads.append(threads)
        self.running.append((name, number))
        if (name, number) == HANGS:
            await self.gate.wait()
        self.running.remove((name, number))
        return None if self._fails else self.versions[name, number]


@asynccontextmanager
async def _open(
    load: Gated, *, parallel: int = 1, patience_s: float = LONG_S, background: Executor | None = None
) -> AsyncIterator[Loads]:
    loads = Loads(
        load,
        parallel=parallel,
        patience_s=patience_s,
        start=asyncio.ensure_future,
        on_change=load.changed.append,
        on_late=load.late.append,
        background=background,
    )
    yield loads
    loads.close()


@pytest.mark.parametrize("parallel", [1, 2])
async def test_as_many_versions_load_at_once_as_allowed(parallel: int) -> None:
    """The next one waits for a place, and is not running until it has one."""
    load = Gated()
    async with _open(load, parallel=parallel) as loads:
        tasks = [asyncio.ensure_future(loads.load(name, 1)) for name in "ab"]
        await until(lambda: load.running == [HANGS] and tasks[1].done() == (parallel == 2))
        assert loads.running == {HANGS}
        load.gate.set()
        assert await asyncio.gather(*tasks) == [load.versions[name, 1] for name in "ab"]
        assert loads.loaded == {load.versions[name, 1] for name in "ab"}
        assert not loads.running
    assert load.changed == ["a", "a", "b", "b"] if parallel == 1 else ["a", "b", "b", "a"]
    assert not load.late


async def test_a_load_that_takes_too_long_leaves_its_place_and_is_kept_until_it_is_taken(
    log_events: LogEvents,
) -> None:
    """It is running until then, and can be taken once."""
    load = Gated()
    async with _open(load, patience_s=0.01) as loads:
        assert await loads.load(*HANGS) is None
        assert (loads.running, loads.overdue) == ({HANGS}, {HANGS})
        assert await loads.load("b", 1) is load.versions["b", 1]
        load.gate.set()
        await until(lambda: load.late == ["a"])
        assert (loads.running, loads.overdue, loads.late("a")) == ({HANGS}, set(), [1])
        assert [loads.take_late(*HANGS) for _ in range(2)] == [load.versions[HANGS], None]
        assert (loads.running, loads.late("a")) == (set(), [])
    (overdue,) = log_events.named("version_overdue")
    assert "more than 0.01 s" in overdue.reason


async def test_a_load_that_fails_late_leaves_nothing() -> None:
    """Its model is refreshed, which says why."""
    load = Gated(fails=True)
    async with _open(load, patience_s=0.01) as loads:
        assert await loads.load(*HANGS) is None
        load.gate.set()
        await until(lambda: load.late == ["a"])
        assert (loads.running, loads.overdue, loads.late("a")) == (set(), set(), [])


async def test_loads_can_be_made_to_leave_their_places() -> None:
    """Those that have one; they end late."""
    load = Gated()
    async with _open(load) as loads:
        assert not loads.leave_places("has made no progress")
        hanging = asyncio.ensure_future(loads.load(*HANGS))
        await until(lambda: load.running == [HANGS])
        assert loads.leave_places("has made no progress")
        assert not loads.leave_places("has made no progress")
        assert await hanging is None
        assert loads.overdue == {HANGS}
        assert await loads.load("b", 1) is load.versions["b", 1]
        load.gate.set()
        await until(lambda: load.late == ["a"])


async def test_later_loads_use_other_threads() -> None:
    """Requests have the right of way once the server has started."""
    load, background = Gated(), ThreadPoolExecutor(1)
    async with _open(load, background=background) as loads:
        await loads.load("b", 1)
        loads.go_to_background()
        await loads.load("b", 2)
    assert load.threads[0] is not background
    assert load.threads[1] is background
