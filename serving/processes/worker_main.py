"""One worker: a server that reads its command from stdin and writes reports to stdout. Run with `python -m`.

It accepts connections after its first scan of the repository: until then they go to workers that can answer.
It stops on STOP, on SIGTERM, and when its supervisor dies.
"""

import signal

if __name__ == "__main__":  # before the imports, which take a second: SIGHUP must not end this process
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import asyncio
import shutil
import socket
import sys
from contextlib import suppress

from serving.metrics.shared_counts import CountsMemory, SharedCounts
from serving.processes.hangup import handle_hangups
from serving.processes.memory_tuning import return_memory
from serving.processes.messages import WorkerReport
from serving.processes.supervisor_channel import SupervisorChannel, run_supervised
from serving.server import Server, run_server

_FLUSH_INTERVAL_S = 0.25  # interval between writes of this worker's counters


def main() -> int:
    """Serve until stopped; return 1 if the server cannot start."""
    return run_supervised(_serve)


async def _serve(control: SupervisorChannel) -> None:
    command = control.command
    memories = {number: CountsMemory(each) for number, each in enumerate(command.counts, 1)}
    inherited = command.worker_socket
    worker_socket = None if inherited is None else socket.socket(fileno=inherited)
    async with (
        run_server(
            command.settings,
            device_server=command.device_server,
            worker_socket=worker_socket,
            counts=SharedCounts(memories, command.worker),
            worker=command.worker,
        ) as server,
        asyncio.TaskGroup() as tasks,
    ):
        background = [
            tasks.create_task(_report_changes(server, control)),
            tasks.create_task(handle_hangups(server.reread)),
            tasks.create_task(_flush_counters(server)),
            tasks.create_task(
                return_memory(lambda: server.middleware.is_idle, lambda: server.open_connections)
            ),
        ]
        orphaned = await control.wait_for_stop()
        await server.stop(lame_duck=not orphaned)
        for task in background:
            task.cancel()
        server.metrics.flush()
    if orphaned and command.device_server is not None:
        # The supervisor can no longer remove it.
        shutil.rmtree(command.device_server.parent, ignore_errors=True)


async def _report_changes(server: Server, control: SupervisorChannel) -> None:
    models = server.models
    while True:
        change = models.change
        served = tuple(f"{each.model}@{each.version}" for each in models.statuses() if each.is_default)
        control.report(
            WorkerReport(why_not_ready=models.why_not_ready, why_broken=models.why_broken, models=served)
        )
        await change.wait()


async def _flush_counters(server: Server) -> None:
    while True:
        with suppress(RuntimeError, MemoryError):  # the system has no memory for a thread now
            await asyncio.to_thread(server.metrics.flush)  # writes to disk
        await asyncio.sleep(_FLUSH_INTERVAL_S)


if __name__ == "__main__":
    sys.exit(main())
