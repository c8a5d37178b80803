"""A child's side of the supervisor's pipes: receives the command, sends reports and beats, waits for STOP."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

import uvloop

from serving.errors import LenserveError
from serving.logs import configure_logs
from serving.processes.exit import exit_soon
from serving.processes.heartbeat import LOOK_S
from serving.processes.memory_tuning import settle_memory
from serving.processes.messages import BEAT, WorkerCommand, WorkerReport, to_line


class SupervisorChannel:
    """The command of this process, and the pipes to the supervisor."""

    def __init__(self, command: WorkerCommand, commands: asyncio.StreamReader, reports: int) -> None:
        """Store the pipes.

        Args:
            command: the first message of the supervisor.
            commands: stdin, which delivers STOP or ends when the supervisor dies.
            reports: file descriptor for reports.
        """
        self.command = command
        self._commands = commands
        self._reports = reports
        self._unsent = bytearray()  # what the supervisor had no room for
        os.set_blocking(reports, False)

    @classmethod
    async def receive(cls, reports: int) -> Self:
        """Read the command from stdin, and configure the logs."""
        commands = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        command = WorkerCommand.model_validate_json(await commands.readline())
        configure_logs(as_json=command.settings.log_json, worker=command.worker)
        return cls(command, commands, reports)

    def report(self, report: WorkerReport) -> None:
        """Send a report to the supervisor."""
        self._unsent += to_line(report)
        self._send()

    async def beat(self) -> None:
        """Send beats until cancelled."""
        while True:
            if not self._unsent:
                self._unsent += BEAT
            self._send()
            await asyncio.sleep(LOOK_S)

    def _send(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError):  # no room; or `wait_for_stop` sees the end of stdin
            del self._unsent[: os.write(self._reports, self._unsent)]

    async def wait_for_stop(self) -> bool:
        """Wait for STOP, SIGTERM or the supervisor's death; return whether the supervisor died."""
        line = asyncio.create_task(self._commands.readline())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, line.cancel)
        await asyncio.wait([line])
        return not line.cancelled() and not line.result()


def run_supervised(serve: Callable[[SupervisorChannel], Awaitable[None]]) -> int:
    """Run this process under the supervisor until it is stopped; return 1 if it cannot start."""
    # Output that libraries print to stdout must not mix with the reports.
    reports = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the supervisor handles it
    settle_memory()

    async def receive_and_serve() -> None:
        control = await SupervisorChannel.receive(reports)
        beats = asyncio.create_task(control.beat())
        try:
            await serve(control)
        except LenserveError as error:
            control.report(WorkerReport(error=type(error).__name__, message=str(error)))
            raise
        finally:
            beats.cancel()
        exit_soon()

    try:
        uvloop.run(receive_and_serve())
    except LenserveError:
        return 1
    return 0
