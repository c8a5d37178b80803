"""One worker: a server that is ordered through stdin and reports through stdout. `python -m` runs it.

It takes connections when it has looked at the repository once: until then they are left to those that can
answer. It stops when it is told to, at SIGTERM, and when its supervisor is gone.
"""

import asyncio
import os
import shutil
import socket
import sys

from serving.metrics.recorder import SHARED_FOLDER, count_as_worker
from serving.processes.control import Orders, take_orders
from serving.processes.messages import Report
from serving.server import Server, run_server

_TELL_S = 0.25  # how often others are let see what this worker has counted


def main() -> int:
    """Serve until it is time to stop; 1 if it cannot start."""
    return take_orders(_serve)


async def _serve(orders: Orders) -> None:
    order = orders.order
    count_as_worker(order.worker)
    seat = None if order.seat is None else socket.socket(fileno=order.seat)
    async with (
        run_server(order.settings, owner=order.owner, seat=seat) as server,
        asyncio.TaskGroup() as tasks,
    ):
        telling = [
            tasks.create_task(_report(server, orders)),
            tasks.create_task(_tell_counts(server)),
        ]
        orphaned = await orders.end()
        await server.stop(lame_duck=not orphaned)
        for task in telling:
            task.cancel()
        server.metrics.tell()
    if orphaned:
        shutil.rmtree(os.environ[SHARED_FOLDER], ignore_errors=True)  # nobody else will


async def _report(server: Server, orders: Orders) -> None:
    models = server.models
    while True:
        change = models.change
        served = tuple(f"{each.model}@{each.version}" for each in models.statuses() if each.is_default)
        orders.report(Report(ready=models.ready, broken=models.broken, models=served))
        await change.wait()


async def _tell_counts(server: Server) -> None:
    while True:
        server.metrics.pending_images.set(server.classifier.admission.pending)
        server.metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        server.metrics.tell()
        await asyncio.sleep(_TELL_S)


if __name__ == "__main__":
    sys.exit(main())
