"""How a process that a supervisor started takes its order, reports, and learns that its time is over."""

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
from serving.processes.exit import end_soon
from serving.processes.memory_tuning import settle_memory
from serving.processes.messages import Order, Report, line


class Orders:
    """The order, and the pipes to the supervisor."""

    def __init__(self, order: Order, pipe: asyncio.StreamReader, reports: int) -> None:
        self.order = order
        self._pipe = pipe
        self._reports = reports

    @classmethod
    async def take(cls, reports: int) -> Self:
        """Read the order."""
        pipe = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
        order = Order.model_validate_json(await pipe.readline())
        configure_logs(as_json=order.settings.log_json, worker=order.worker)
        return cls(order, pipe, reports)

    def report(self, report: Report) -> None:
        """Tell the supervisor."""
        with suppress(BrokenPipeError):  # nobody hears it: the end of stdin is noticed too
            os.write(self._reports, line(report))

    async def end(self) -> bool:
        """Wait until it is time to stop, and say whether that is because the supervisor is gone."""
        told = asyncio.create_task(self._pipe.readline())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.cancel)
        await asyncio.wait([told])
        return not told.cancelled() and not told.result()


def take_orders(serve: Callable[[Orders], Awaitable[None]]) -> int:
    """Do what was ordered until it is time to stop; 1 if that cannot be done."""
    # Whatever a library prints must not end up among the reports.
    reports = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the supervisor decides
    settle_memory()

    async def take_and_serve() -> None:
        orders = await Orders.take(reports)
        try:
            await serve(orders)
        except LenserveError as error:
            orders.report(Report(error=type(error).__name__, message=str(error)))
            raise
        end_soon()

    try:
        uvloop.run(take_and_serve())
    except LenserveError:
        return 1
    return 0
