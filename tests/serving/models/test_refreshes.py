"""Which models are being refreshed, how long the others wait for them, and which hang."""

import asyncio
import threading

from serving.models.refreshes import Refreshes
from tests.serving.log_events import LogEvents


class Gated:
    """Refreshes models, of which some hang until they are let go."""

    def __init__(self, *hanging: str) -> None:
        self._hanging = hanging
        self.gate = asyncio.Event()
        self.overdue: list[tuple[str, str]] = []
        self.refreshes = Refreshes(
            self._refresh,
            start=asyncio.create_task,
            on_overdue=lambda name, reason: self.overdue.append((name, reason)),
        )

    async def _refresh(self, name: str) -> None:
        if name in self._hanging:
            await self.gate.wait()


async def test_a_model_is_being_refreshed_until_its_refresh_ends() -> None:
    """Others can wait for it."""
    gated = Gated("a")
    refresh = gated.refreshes.begin("a")
    waiting = asyncio.ensure_future(gated.refreshes.until_ended("a"))
    await asyncio.sleep(0)
    assert "a" in gated.refreshes
    assert "b" not in gated.refreshes
    gated.gate.set()
    await refresh
    await asyncio.wait_for(waiting, 10)
    assert "a" not in gated.refreshes


async def test_those_that_hang_are_named_once_unless_a_version_of_theirs_loads(
    log_events: LogEvents,
) -> None:
    """A load may take longer than reading a folder. They are forgotten when they end."""
    gated = Gated("a", "b")
    for name in "abc":
        gated.refreshes.begin(name)
    await gated.refreshes.wait(timeout_s=0.01)
    for _ in range(2):
        gated.refreshes.note_overdue(limit_s=0.01, loading={"b"})
    reason = "reading its folder has taken more than 0.01 s: check its volume"
    assert gated.overdue == [("a", reason)]
    assert [event.model for event in log_events.named("model_overdue")] == ["a"]
    assert gated.refreshes.overdue == {"a"}
    gated.gate.set()
    await gated.refreshes.wait(timeout_s=10)
    assert not gated.refreshes.overdue


async def test_waiting_ends_when_nothing_helps() -> None:
    """It is given up twice here: the first time, that lets another one go on.

    With shorter looks than 0.1 s, looking itself is work on slow machines.
    """
    gated, calls = Gated("a", "b"), iter((True, False))
    for name in "ab":
        gated.refreshes.begin(name)
    await asyncio.wait_for(
        gated.refreshes.wait_while_useful(stuck_s=0.5, patience_s=3600, give_up=lambda: next(calls)), 10
    )
    assert next(calls, None) is None
    gated.gate.set()
    await asyncio.wait_for(
        gated.refreshes.wait_while_useful(stuck_s=3600, patience_s=3600, give_up=lambda: False), 10
    )


async def test_a_process_that_works_on_something_else_does_not_wait_for_ever() -> None:
    """It answers calls, for example, while a folder hangs."""
    gated, done = Gated("a"), threading.Event()

    def compute() -> None:
        while not done.is_set():
            pass

    worker = threading.Thread(target=compute)
    worker.start()
    gated.refreshes.begin("a")
    try:
        await asyncio.wait_for(
            gated.refreshes.wait_while_useful(stuck_s=0.1, patience_s=0.2, give_up=lambda: False), 10
        )
    finally:
        done.set()
        worker.join()
    assert "a" in gated.refreshes
    gated.gate.set()
