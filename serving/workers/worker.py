"""One worker: a server that is ordered through stdin and reports through stdout. `python -m` runs it.

It listens when it has looked at the repository once: until then the port is left to those that can answer. It
stops when it is told to, at SIGTERM, and when its supervisor is gone.
"""

import asyncio
import os
import shutil
import signal
import sys
from contextlib import suppress

import uvloop

from serving.allocation import give_back_large_buffers
from serving.errors import LenserveError
from serving.logs import configure_logs
from serving.metrics import SHARED_FOLDER, count_as_worker
from serving.server import Server, run_server
from serving.workers.messages import Order, Report, line

_SAMPLE_S = 0.5  # how often gauges are written that a scrape of this process would have asked for


def main() -> int:
    """Serve until it is time to stop; 1 if it cannot start."""
    # Whatever a library prints must not end up among the reports.
    reports = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the supervisor decides
    give_back_large_buffers()
    try:
        uvloop.run(_serve(reports))
    except LenserveError as error:
        _send(reports, Report(error=type(error).__name__, message=str(error)))
        return 1
    return 0


async def _serve(reports: int) -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    order = Order.model_validate_json(await orders.readline())
    configure_logs(as_json=order.settings.log_json, worker=order.worker)
    count_as_worker(order.worker)
    async with run_server(order.settings) as server, asyncio.TaskGroup() as tasks:
        told = asyncio.create_task(orders.readline())
        loop.add_signal_handler(signal.SIGTERM, told.cancel)
        telling = [tasks.create_task(_report(server, reports)), tasks.create_task(_sample(server))]
        await asyncio.wait([told])
        orphaned = not told.cancelled() and not told.result()
        await server.stop(lame_duck=not orphaned)
        for task in telling:
            task.cancel()
    if orphaned:
        shutil.rmtree(os.environ[SHARED_FOLDER], ignore_errors=True)  # nobody else will


async def _report(server: Server, reports: int) -> None:
    models = server.models
    while True:
        change = models.change
        served = tuple(f"{each.model}@{each.version}" for each in models.statuses() if each.is_default)
        _send(reports, Report(ready=models.ready, broken=models.broken, models=served))
        await change.wait()


async def _sample(server: Server) -> None:
    while True:
        server.metrics.pending_images.set(server.classifier.admission.pending)
        server.metrics.event_loop_tasks.set(len(asyncio.all_tasks()))
        server.metrics.tell()
        await asyncio.sleep(_SAMPLE_S)


def _send(reports: int, report: Report) -> None:
    with suppress(BrokenPipeError):  # nobody hears it: the end of stdin is noticed too
        os.write(reports, line(report))


if __name__ == "__main__":
    sys.exit(main())
