"""One worker, from the supervisor's side: a child process, replaced by a new one when it dies."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import chain

from serving import errors
from serving.errors import LenserveError
from serving.processes.heartbeat import LOOK_S, Heartbeat
from serving.processes.messages import BEAT, STOP, WorkerCommand, WorkerReport, to_line
from serving.transports.connection_passing import ConnectionDistributor, Receiver

# The pause before a successor starts: the shortest, doubled with each consecutive death, up to the longest. A
# worker that lives longer than that resets the count.
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0

# Processes in a row that die before they serve, after which a new one is not expected to recover either. With
# the pauses between them that takes 1.5 s and the time that they live.
_HOPELESS_STARTS = 5

_MAX_REPORT_BYTES = 2**24

# Children import only from the supervisor's path (-P).
_MODULE = (sys.executable, "-P", "-m")
WORKER = (*_MODULE, "serving.processes.worker_main")
DEVICE_SERVER = (*_MODULE, "serving.processes.device_server")

_log = logging.getLogger(__name__)


def pause_s(deaths: int) -> float:
    """Return the seconds to wait before the next start, after 1 or more consecutive deaths."""
    return min(_SHORTEST_PAUSE_S * 2.0 ** min(deaths - 1, 10), _LONGEST_PAUSE_S)


class WorkerProcess:
    """A worker's number and command, its current process, and the last report of that process."""

    def __init__(
        self,
        command: WorkerCommand,
        *,
        on_report: Callable[[], None],
        on_death: Callable[[int], None],
        on_hang: Callable[[int], None] = lambda _: None,
        on_break: Callable[[], None] = lambda: None,
        argv: Sequence[str] = WORKER,
        hopeless_starts: int = _HOPELESS_STARTS,
        distributor: ConnectionDistributor | None = None,
    ) -> None:
        """Store the options.

        Args:
            command: sent to each process of this worker.
            on_report: called after each report, when the process is late or answers again, and when it ends.
            on_death: called with the number of a worker that exited without being stopped.
            on_hang: called with the number of a worker that hangs, before it is killed.
            on_break: called when a worker reports a broken engine.
            argv: command line of a worker or the device server.
            hopeless_starts: processes in a row that die before they serve, after which the worker is dead.
            distributor: passes connections to the worker; without it, the worker listens.
        """
        self.number = command.worker
        self.report: WorkerReport | None = None  # None: the worker does not listen yet
        self._name = f"worker {command.worker}" if command.listener is None else "the device server"
        self._command = command
        self._on_report = on_report
        self._on_death = on_death
        self._on_hang = on_hang
        self._on_break = on_break
        self._argv = argv
        self._hopeless_starts, self._failed_starts = hopeless_starts, 0
        self._distributor = distributor
        self._receiver: Receiver | None = None
        self._heartbeat = Heartbeat(hung_after_s=command.settings.hung_after_s)
        self._disagreement, self._has_agreed = "", False
        self.started_s = 0.0  # when the current process started, on the clock of time.monotonic()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._has_listened = False

    @property
    def pid(self) -> int | None:
        """Process id; None if no process is running."""
        return None if self._process is None else self._process.pid

    @property
    def why_not_live(self) -> str:
        """Why its engine is broken, or successors do not help; empty while it serves or may serve again."""
        if self._failed_starts >= self._hopeless_starts:
            return f"{self._name} has died {self._failed_starts} times in a row before it served"
        broken = self.report.why_broken if self.report else ""
        return f"{self._name} is broken: {broken}" if broken else ""

    @property
    def problem(self) -> str:
        """Why the worker is not ready; empty if it is ready."""
        if self._process is None:
            return f"{self._name} is dead"
        if self.report is None:
            return f"{self._name} is starting"
        if self._heartbeat.is_late:
            return f"{self._name} does not answer"
        if self.report.why_not_ready:
            return f"{self._name} is not ready: {self.report.why_not_ready}"
        return self._disagreement

    def compare(self, others: "Sequence[WorkerProcess]") -> None:
        """Compare what a new process serves with what older ones serve: until it agrees, it is not ready.

        Later differences do not count: new versions reach one worker after the other.
        """
        if self.report is None or self._has_agreed:
            return
        older = [
            each.report.models
            for each in others
            if each.report and not each.problem and each.started_s < self.started_s
        ]
        lacks = sorted({model for models in older for model in models} - set(self.report.models))
        problem = f"{self._name} cannot serve {', '.join(lacks)}, which other workers serve" if lacks else ""
        if problem and problem != self._disagreement:
            _log.error("worker_disagrees", extra={"worker": self.number, "reason": problem})
        self._disagreement, self._has_agreed = problem, not problem

    def show_problem(self) -> None:
        """Let the distributor prefer other workers while this one has a problem."""
        if self._receiver is not None:
            self._receiver.is_preferred = not self.problem

    async def keep_running(self) -> None:
        """Start a process, and a successor each time it dies, until `stop`.

        Raises:
            LenserveError: the first process could not start.
        """
        deaths = 0
        while True:
            self.started_s = time.monotonic()
            reason = await self._run()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - self.started_s > _LONGEST_PAUSE_S else deaths + 1
            pause = pause_s(deaths)
            _log.error("worker_died", extra={"worker": self.number, "reason": reason, "pause_s": pause})
            self._on_death(self.number)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return

    def stop(self) -> None:
        """Ask the process to stop gracefully, and start no successor."""
        self._stopping.set()
        if self._process is None:
            return
        if self.report is None or self._process.stdin is None:
            self._signal(signal.SIGTERM)  # it has not accepted requests yet
        elif not self._process.stdin.is_closing():
            self._process.stdin.write(STOP)

    def reread(self) -> None:
        """Let the process look for changed files. One that is starting reads them anyway."""
        if self.report is not None:
            self._signal(signal.SIGHUP)

    def replace(self) -> None:
        """Kill the process; a successor follows."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kill the process, and start no successor."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def _run(self) -> str:
        """Run one process from start to exit; return why it ended."""
        try:
            process = await self._start()
        except OSError as error:  # the system may be out of memory or processes, which is temporary
            return f"the process cannot be started: {error}"
        self._process = process
        self._heartbeat = Heartbeat(hung_after_s=self._command.settings.hung_after_s)
        self._disagreement, self._has_agreed = "", False
        watch = asyncio.create_task(self._watch())
        try:
            return await self._follow(process)
        finally:
            watch.cancel()
            self._signal(signal.SIGKILL)  # this task was cancelled or failed while the process runs
            await _close(process)
            self._failed_starts += self.report is None
            self._process = self.report = None
            self._on_report()

    async def _start(self) -> asyncio.subprocess.Process:
        with ExitStack() as stack:
            if self._distributor is not None:
                self._receiver = self._distributor.add_receiver()
                worker_socket = stack.enter_context(self._receiver.worker_end)
                self._command = self._command.model_copy(update={"worker_socket": worker_socket.fileno()})
            counts = chain.from_iterable(self._command.counts)
            inherited = (self._command.listener, self._command.worker_socket, *counts)
            return await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_REPORT_BYTES,
                pass_fds=[each for each in inherited if each is not None],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    async def _follow(self, process: asyncio.subprocess.Process) -> str:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a worker has no pipes. This is a bug.")
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        if not process.stdin.is_closing():  # a process that died at once has closed it
            process.stdin.write(to_line(self._command))
        reason = ""
        async for line in process.stdout:
            self._heartbeat.beat()
            if line == BEAT:
                continue
            if not line.endswith(b"\n"):  # the process was killed while writing
                break
            report = WorkerReport.model_validate_json(line)
            if report.error:
                reason = self._failed_start(report)
                continue
            self._has_listened, self._failed_starts = True, 0
            self._heartbeat.begin_serving()
            has_broken = report.why_broken and not (self.report and self.report.why_broken)
            self.report = report
            self._on_report()
            if has_broken:
                self._signal(signal.SIGTERM)  # the device may work for the successor
                self._on_break()
        code = await process.wait()
        if self._heartbeat.is_hung:
            return f"it hung: no sign of life for {self._heartbeat.silent_s:g} s"
        return reason or _exit_reason(code)

    async def _watch(self) -> None:
        """Report that the process is late or answers again; kill it if it hangs. A stop has its own limit."""
        heartbeat, was_late = self._heartbeat, False
        while not heartbeat.is_hung or self._stopping.is_set():
            await asyncio.sleep(LOOK_S)
            heartbeat.look()
            if heartbeat.is_late != was_late:
                was_late = heartbeat.is_late
                self._on_report()
        _log.error("worker_hangs", extra={"worker": self.number, "silent_s": heartbeat.silent_s})
        self._on_hang(self.number)
        self._signal(signal.SIGKILL)

    def _failed_start(self, report: WorkerReport) -> str:
        # If the first start fails, so would the next: the operator has to act. Later starts may recover.
        if not self._has_listened:
            kind = vars(errors).get(report.error, LenserveError)
            raise kind(report.message)
        return report.message

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


async def _close(process: asyncio.subprocess.Process) -> None:
    """Wait until a process exits, and close its pipes."""
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        await process.stdout.read()
    await process.wait()


def _exit_reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
