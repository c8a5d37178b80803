"""One worker as its supervisor sees it: a process, and after its death the next one."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from serving import errors
from serving.errors import LenserveError
from serving.metrics.recorder import SHARED_FOLDER
from serving.processes.messages import STOP, Order, Report, line
from serving.transports.connection_passing import Dealer

# The pause before a successor starts: the shortest, doubled with every death in a row up to the longest. Who
# lives for longer than that begins a new row.
_SHORTEST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0

_MAX_REPORT_BYTES = 2**24

# They import what their supervisor imports: from the same path, and from nowhere else (-P).
_MODULE = (sys.executable, "-P", "-m")
WORKER = (*_MODULE, "serving.processes.worker")
OWNER = (*_MODULE, "serving.processes.device_server")

_log = logging.getLogger(__name__)


def pause_s(deaths: int) -> float:
    """How long to wait after so many deaths in a row, at least one."""
    return min(_SHORTEST_PAUSE_S * 2.0 ** min(deaths - 1, 10), _LONGEST_PAUSE_S)


class WorkerProcess:
    """A place among the workers. A class because the process in it changes, and what it last said."""

    def __init__(
        self,
        order: Order,
        folder: Path,
        *,
        on_report: Callable[[], None],
        on_death: Callable[[int], None],
        on_break: Callable[[], None] = lambda: None,
        command: Sequence[str] = WORKER,
        dealer: Dealer | None = None,
    ) -> None:
        """Store the options.

        Args:
            order: what the worker is to be.
            folder: in which the workers count together.
            on_report: told of every change of what the worker says.
            on_death: told the number of a worker that ended without being told to.
            on_break: told when an engine stopped working for good.
            command: runs a worker, or the owner of the device.
            dealer: deals connections to it. Without one it listens itself.
        """
        self.number = order.worker
        self.report: Report | None = None  # none: it does not listen yet
        self._name = f"worker {order.worker}" if order.listener is None else "the owner of the device"
        self._order = order
        self._folder = folder
        self._on_report = on_report
        self._on_death = on_death
        self._on_break = on_break
        self._command = command
        self._dealer = dealer
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._has_listened = False

    @property
    def pid(self) -> int | None:
        """Of the process; none while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def live(self) -> bool:
        """Whether there is a process whose engines work."""
        return self._process is not None and not (self.report and self.report.broken)

    @property
    def problem(self) -> str:
        """Why it is not ready; empty if it is."""
        if self._process is None:
            return f"{self._name} is dead"
        if self.report is None:
            return f"{self._name} is starting"
        return "" if self.report.ready else f"{self._name} is not ready"

    async def keep_running(self) -> None:
        """Start a process, and another when it dies, until `stop`.

        Raises:
            LenserveError: whatever kept the first process from starting.
        """
        deaths = 0
        while True:
            started_s = time.monotonic()
            reason = await self._run()
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - started_s > _LONGEST_PAUSE_S else deaths + 1
            pause = pause_s(deaths)
            _log.error("worker_died", extra={"worker": self.number, "reason": reason, "pause_s": pause})
            self._on_death(self.number)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return

    def stop(self) -> None:
        """Tell it to stop gracefully, and start no other."""
        self._stopping.set()
        if self._process is None:
            return
        if self.report is None or self._process.stdin is None:
            self._signal(signal.SIGTERM)  # nobody waits for an answer
        elif not self._process.stdin.is_closing():
            self._process.stdin.write(STOP)

    def replace(self) -> None:
        """End the process at once: another will follow."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, and start no other."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def _run(self) -> str:
        """One process from its start to its end, and why it ended."""
        try:
            process = await self._start()
        except OSError as error:  # no memory, say, or too many processes: that may pass
            return f"it cannot be started: {error}"
        self._process = process
        try:
            return await self._listen_to(process)
        finally:
            self._signal(signal.SIGKILL)  # if it has not ended, we are leaving it
            await _close(process)
            self._process = self.report = None
            self._on_report()

    async def _start(self) -> asyncio.subprocess.Process:
        with ExitStack() as stack:
            if self._dealer is not None:
                seat = stack.enter_context(self._dealer.seat())
                self._order = self._order.model_copy(update={"seat": seat.fileno()})
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_REPORT_BYTES,
                pass_fds=[each for each in (self._order.listener, self._order.seat) if each is not None],
                env={**os.environ, SHARED_FOLDER: str(self._folder), "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    async def _listen_to(self, process: asyncio.subprocess.Process) -> str:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a worker has no pipes. This is a bug.")
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        process.stdin.write(line(self._order))
        reason = ""
        async for said in process.stdout:
            if not said.endswith(b"\n"):  # it was killed in the middle of a word
                break
            report = Report.model_validate_json(said)
            if report.error:
                reason = self._refused(report)
                continue
            self._has_listened = True
            has_broken = report.broken and not (self.report and self.report.broken)
            self.report = report
            self._on_report()
            if has_broken:
                self._signal(signal.SIGTERM)  # its successor may find the device mended
                self._on_break()
        return reason or _how_it_ended(await process.wait())

    def _refused(self, report: Report) -> str:
        """A first start that fails would fail again: that is for the operator. Later it may not."""
        if not self._has_listened:
            kind = vars(errors).get(report.error, LenserveError)
            raise kind(report.message)
        return report.message

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


async def _close(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process, and close its pipes."""
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        await process.stdout.read()
    await process.wait()


def _how_it_ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
