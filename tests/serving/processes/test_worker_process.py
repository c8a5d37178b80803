"""A worker from the supervisor's side: one process after another."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

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
GOOD = f"{REPORTING}say(models=[str(command['worker'])]); sys.stdin.readline()"
BEATING = f"""{REPORTING}say()
import time
while True:
    print(flush=True)
    time.sleep(0.05)
"""
FAILING = f"{REPORTING}sys.exit(3)"
BROKEN = f"{REPORTING}say(why_broken='NaN'); say(why_broken='NaN', models=['a']); signal.pause()"
MUMBLING = f"{REPORTING}say(); print('{{\"rea', end='', flush=True)"
LATER = f"""{REPORTING}
from pathlib import Path
if Path(command['settings']['repository'], 'repaired').exists():
    say()
    sys.stdin.readline()
"""
REFUSING = f"{REPORTING}say(error='UsageError', message='no such folder')"


class Place:
    """A worker that runs this code, and the callbacks that its supervisor received."""

    def __init__(
        self,
        code: str,
        folder: Path,
        *,
        python: str = sys.executable,
        hung_after_s: float = 30.0,
        hopeless_starts: int = 5,
    ) -> None:
        self.deaths: list[int] = []
        self.reports: list[WorkerReport | None] = []
        self.breaks = self.hangs = 0
        self._told = asyncio.Event()
        self.worker = WorkerProcess(
            WorkerCommand(worker=7, settings=ServerSettings(repository=folder, hung_after_s=hung_after_s)),
            on_report=self._note,
            on_death=self._count,
            on_hang=lambda _: self._hang(),
            on_break=self._break,
            argv=(python, "-c", code),
            hopeless_starts=hopeless_starts,
        )

    def _note(self) -> None:
        self.reports.append(self.worker.report)
        self._told.set()

    def _count(self, number: int) -> None:
        self.deaths.append(number)
        self._told.set()

    def _hang(self) -> None:
        self.hangs += 1

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
    assert place.worker.report == WorkerReport(models=("7",))
    assert (place.worker.why_not_live, place.worker.problem) == ("", "")

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


async def test_a_worker_is_dead_only_if_its_successors_die_too(tmp_path: Path) -> None:
    """After a few in a row that never served, and not in the pauses between them. One that serves ends it."""
    place = Place(LATER, tmp_path, hopeless_starts=3)
    running = asyncio.create_task(place.worker.keep_running())
    said: list[str] = []
    for deaths in (1, 2, 3):
        await place.until(lambda deaths=deaths: len(place.deaths) == deaths)  # type: ignore[misc]
        said.append(place.worker.why_not_live)
    assert said == ["", "", "worker 7 has died 3 times in a row before it served"]
    (tmp_path / "repaired").touch()
    await place.until(lambda: place.worker.report)
    assert not place.worker.why_not_live
    place.worker.kill()
    await asyncio.wait_for(running, 20)
    assert not place.worker.why_not_live


async def test_a_worker_that_is_killed_during_a_report_is_replaced(
    tmp_path: Path, log_events: LogEvents
) -> None:
    """An incomplete report is ignored."""
    place = Place(MUMBLING, tmp_path)
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: place.deaths)
    place.worker.kill()
    await asyncio.wait_for(running, 20)

    assert place.reports[0] == WorkerReport()
    assert log_events.named("worker_died")[0].reason == "exit code 0"


def test_a_worker_that_dies_before_its_command_is_replaced(tmp_path: Path) -> None:
    """On the event loop of servers, whose pipe is closed by then: the supervisor and the others live on."""

    async def supervise() -> None:
        place = Place("", tmp_path, python="/bin/true")
        running = asyncio.create_task(place.worker.keep_running())
        started = place.worker._start

        async def start_and_wait_for_its_end() -> asyncio.subprocess.Process:
            process = await started()
            await process.wait()
            assert process.stdin is not None
            process.stdin.close()
            return process

        place.worker._start = start_and_wait_for_its_end  # type: ignore[method-assign]
        await place.until(lambda: len(place.deaths) == 2)
        place.worker.stop()
        await asyncio.wait_for(running, 20)

    uvloop.run(supervise())


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
    assert place.worker.why_not_live == "worker 7 is broken: NaN"
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


async def test_a_process_that_hangs_is_killed_and_replaced(tmp_path: Path, log_events: LogEvents) -> None:
    """It beats until SIGSTOP. Before it is killed it is not ready, because it is late."""
    place = Place(BEATING, tmp_path, hung_after_s=1.0)
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: place.worker.report)
    assert place.worker.pid is not None
    os.kill(place.worker.pid, signal.SIGSTOP)
    await place.until(lambda: place.worker.problem == "worker 7 does not answer")
    assert not place.worker.why_not_live  # it may go on
    await place.until(lambda: place.deaths)
    await place.until(lambda: place.worker.report and not place.worker.problem)  # its successor
    place.worker.kill()
    await asyncio.wait_for(running, 20)

    assert log_events.named("worker_died")[0].reason == "it hung: no sign of life for 1.25 s"
    assert place.hangs == 1


async def test_a_process_that_is_only_late_is_ready_again(tmp_path: Path) -> None:
    """SIGCONT comes before the limit."""
    place = Place(BEATING, tmp_path, hung_after_s=30.0)
    running = asyncio.create_task(place.worker.keep_running())
    await place.until(lambda: place.worker.report)
    assert place.worker.pid is not None
    os.kill(place.worker.pid, signal.SIGSTOP)
    await place.until(lambda: place.worker.problem)
    os.kill(place.worker.pid, signal.SIGCONT)
    await place.until(lambda: not place.worker.problem)
    place.worker.kill()
    await asyncio.wait_for(running, 20)
    assert not place.deaths


async def test_a_successor_that_lacks_a_version_of_the_others_is_not_ready(
    tmp_path: Path, log_events: LogEvents
) -> None:
    """Its files may have been damaged since. It is compared until it agrees once."""
    older, newer = Place(GOOD, tmp_path), Place(GOOD, tmp_path)
    running = [asyncio.create_task(each.worker.keep_running()) for each in (older, newer)]
    for each in (older, newer):
        await each.until(lambda each=each: each.worker.report)  # type: ignore[misc]
    older.worker.report = WorkerReport(models=("colours@2",))
    newer.worker.report = WorkerReport(models=("colours@1",))
    for each in (older, newer):
        each.worker.compare([older.worker, newer.worker])
    assert not older.worker.problem
    problem = "worker 7 cannot serve colours@2, which other workers serve"
    assert (newer.worker.problem, log_events.named("worker_disagrees")[0].reason) == (problem, problem)

    newer.worker.report = WorkerReport(models=("colours@2", "shapes@1"))
    newer.worker.compare([older.worker])
    newer.worker.report = WorkerReport(models=("colours@1",))
    newer.worker.compare([older.worker])
    assert not newer.worker.problem
    for each in (older, newer):
        each.worker.kill()
    await asyncio.wait_for(asyncio.gather(*running), 20)


@pytest.mark.parametrize(("deaths", "expected_s"), [(1, 0.1), (2, 0.2), (7, 6.4), (8, 10.0), (2000, 10.0)])
def test_pauses_grow_from_a_tenth_of_a_second_to_ten(deaths: int, expected_s: float) -> None:
    """A worker that never starts costs almost nothing."""
    assert pause_s(deaths) == pytest.approx(expected_s)
