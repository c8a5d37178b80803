"""Runs the whole server in this process until it is stopped."""

import asyncio
import logging
import os
import signal

from serving.logs import flush_logs
from serving.processes.exit import exit_soon
from serving.processes.hangup import handle_hangups
from serving.processes.memory_tuning import return_memory
from serving.server import Server, run_server
from serving.settings import ServerSettings

_log = logging.getLogger(__name__)


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully; a second signal exits at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: stop.set() if not stop.is_set() else _exit_at_once())
    async with run_server(settings) as server:
        background = [
            asyncio.create_task(_log_ready(server)),
            asyncio.create_task(handle_hangups(server.reread)),
            asyncio.create_task(
                return_memory(lambda: server.middleware.is_idle, lambda: server.open_connections)
            ),
        ]
        await stop.wait()
        for task in background:
            task.cancel()
        await server.stop()
    exit_soon()


def _exit_at_once() -> None:
    flush_logs()
    os._exit(1)  # sys.exit would wait for threads


async def _log_ready(server: Server) -> None:
    await server.models.scanned()
    models = ", ".join(f"{each.model}@{each.version}" for each in server.models.statuses() if each.is_default)
    if problem := server.models.why_not_ready:
        _log.error("not_ready", extra={"reason": problem})
    else:
        _log.info("ready", extra={"models": models or "none yet: the repository has no <model>/<version>"})
