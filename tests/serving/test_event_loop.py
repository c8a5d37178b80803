"""A monitor notices when its event loop does not turn."""

import asyncio

from serving.event_loop import LoopMonitor
from tests.serving.until import until


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def _monitor(clock: Clock) -> LoopMonitor:
    return LoopMonitor(hung_after_s=5.0, interval_s=1.0, window_s=30.0, clock=clock)


async def test_an_event_loop_that_turns_has_no_problem() -> None:
    """Its ticks come in time."""
    ticks = list[None]()
    async with LoopMonitor(hung_after_s=5.0, interval_s=0.001, on_tick=lambda: ticks.append(None)) as monitor:
        await until(lambda: len(ticks) >= 5)
        assert not monitor.problem


async def test_a_missing_tick_is_a_problem_after_the_limit() -> None:
    """The time between two ticks does not count; the message has the time and the limit."""
    monitor = _monitor(clock := Clock())
    clock.now_s += 6.0
    assert (monitor.lag_s, monitor.problem) == (5.0, "")
    clock.now_s += 0.5
    assert monitor.problem == "the event loop has not turned for 5.5 s, the limit is 5 s"
    monitor.tick()
    assert not monitor.problem


async def test_the_largest_lag_is_kept_for_one_to_two_windows() -> None:
    """A scrape every 30 s misses none, and an old one is forgotten."""
    monitor = _monitor(clock := Clock())
    clock.now_s += 4.0
    assert monitor.largest_lag_s == 3.0  # also while it hangs
    monitor.tick()
    for _ in range(30):
        clock.now_s += 1.0
        monitor.tick()
    assert monitor.largest_lag_s == 3.0
    for _ in range(60):
        clock.now_s += 1.0
        monitor.tick()
    assert monitor.largest_lag_s == 0.0


async def test_ticks_end_with_the_block() -> None:
    """Nothing stays on the event loop."""
    ticks = list[None]()
    async with LoopMonitor(hung_after_s=5.0, interval_s=0.0, on_tick=lambda: ticks.append(None)):
        await until(lambda: bool(ticks))
    count = len(ticks)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(ticks) == count
