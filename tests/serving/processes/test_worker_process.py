"""A worker from the supervisor's side: one process after another."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.errors import UsageError
from serving.processes.messages import WorkerCommand, WorkerReport
from serving.processes.worker_process import WorkerProcess, pause_s
from serving.settings import ServerSettings
from tests.serving.log_events import LogEvents

# Workers of a few lines: they read their command, report, and end as their code says.
REPORTING = """
import json, signal, sys
command = json.loads(sys.stdin.readline())
def say(**report):
    print(json.dumps(report), flush=True)
"""
GOOD = f"{REPORTING}say(ready=True, models=[str(command['worker'])]); sys.stdin.readline()"
FAILING = f"{REPORTING}sys.exit(3)"
BROKEN = f"{REPORTING}say(broken=True); say(broken=True, models=['a']); signal.pause()"
MUMBLING = f"{REPORTING}say(ready=True); print('{{\"rea', end='', flush=True)"
REFUSING = f"{REPORTING}say(error='UsageError', message='no such folder')"


class Place:
    """A worker that runs this code, and the callbacks that its supervisor received."""

    def __init__(self, code: str, folder: Path, *, python: str = sys.executable) -> None:
        self.deaths: list[int] = []
        self.reports: list[WorkerReport | None] = []
        self.breaks = 0
        self._told = asyncio.Event()
        self.worker = WorkerProcess(
            WorkerCommand(worker=7, settings=ServerSettings(repository=folder)),
            folder,
            on_report=self._note,
            on_death=self._count,
            on_break=self._break,
            argv=(python, "-c", code),
        )

    def _note(self) -> None:
        self.reports.append(self.worker.report)
        self._told.set()

    def _count(self, number: int) -> None:
        self.deaths.append(number)
        self._told.set()

    def _break(self) -> None:
        self.breaks += 1

    async def until(self, reached: Callable[[], object]) -> None:
        """Wait until a callback makes this true."""
        async with asyncio.timeout(20):
            while not reached():
                self._told.clear()
                await self._told.wait()


async def test_a_worker_takes_its_command_reports_and_stops_when_asked(tmp_path: Path) -> None:
    """It is starting, then ready; its exit after a stop is not a death."""
    place = Place(GOOD, tmp_path)
    running = asyncio.create_task(place.worker.keep_running())
    assert place.worker.problem == "worker 7 is dead"

    await place.until(lambda: place.worker.report)
    assert place.worker.report == WorkerReport(ready=True, models=("7",))
    assert (place.worker.live, place.worker.problem) == (True, "")

    place.worker.stop()
    await asyncio.wait_for(running, 20)
    assert (place.deaths, place.reports[-1]) == ([], None)


async def test_a_worker_that_dies_is_replaced_and_counted(tmp_path: Path, log_events: LogEvents) -> None:
    """Every death is logged with its reason and the pause that follows, which grows."""
    place = Place(FAILING, tmp_path)
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: len(place.deaths) == 3)
    place.worker.stop()
    await asyncio.wait_for(running, 20)

    assert place.deaths == [7, 7, 7]
    died = log_events.named("worker_died")
    assert [(each.worker, each.reason, each.pause_s) for each in died] == [
        (7, "exit code 3", 0.1),
        (7, "exit code 3", 0.2),
        (7, "exit code 3", 0.4),
    ]


async def test_a_worker_that_is_killed_during_a_report_is_replaced(
    tmp_path: Path, log_events: LogEvents
) -> None:
    """An incomplete report is ignored."""
    place = Place(MUMBLING, tmp_path)
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: place.deaths)
    place.worker.kill()
    await asyncio.wait_for(running, 20)

    assert place.reports[0] == WorkerReport(ready=True)
    assert log_events.named("worker_died")[0].reason == "exit code 0"


async def test_starting_a_worker_is_retried(tmp_path: Path, log_events: LogEvents) -> None:
    """A machine without free processes or memory may recover; the other workers continue."""
    place = Place(GOOD, tmp_path, python=str(tmp_path / "no-python"))
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: len(place.deaths) == 2)
    place.worker.stop()
    await asyncio.wait_for(running, 20)

    assert "the process cannot be started" in log_events.named("worker_died")[1].reason
    assert "no-python" in log_events.named("worker_died")[1].reason


async def test_a_worker_with_a_broken_engine_is_replaced(tmp_path: Path, log_events: LogEvents) -> None:
    """Only a new process can recover; until then the worker is not live."""
    place = Place(BROKEN, tmp_path)
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: place.reports)
    assert not place.worker.live
    await place.until(lambda: place.deaths)
    place.worker.kill()
    await asyncio.wait_for(running, 20)

    assert log_events.named("worker_died")[0].reason == "signal 15 (SIGTERM)"
    assert place.breaks == 1


async def test_the_reason_why_the_first_process_cannot_start_is_raised(tmp_path: Path) -> None:
    """A misconfiguration is not retried."""
    place = Place(REFUSING, tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        await asyncio.wait_for(place.worker.keep_running(), 20)
    assert not place.deaths


@pytest.mark.parametrize(("deaths", "expected_s"), [(1, 0.1), (2, 0.2), (7, 6.4), (8, 10.0), (2000, 10.0)])
def test_pauses_grow_from_a_tenth_of_a_second_to_ten(deaths: int, expected_s: float) -> None:
    """A worker that never starts costs almost nothing."""
    assert pause_s(deaths) == pytest.approx(expected_s)
