"""Starts workers, replaces those that die, stops them, and answers over HTTP for all. Serves no request."""

import asyncio
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from serving.admin.http_server import HttpServer
from serving.processes.messages import Order
from serving.processes.metrics import WorkerMetrics
from serving.processes.worker_process import OWNER, WorkerProcess
from serving.settings import ServerSettings
from serving.transports.connection_passing import Dealer
from serving.transports.ports import reserve_port

# What a worker needs beyond lame_duck_s and drain_timeout_s to end, before it is killed.
_ENDING_S = 3.0

_OWNER_NUMBER = 0  # of the owner of the device among the workers

_log = logging.getLogger(__name__)


async def supervise(settings: ServerSettings) -> None:
    """Run workers until SIGTERM or SIGINT; a second signal ends all of them at once.

    Raises:
        UsageError: the repository, the token file or a TLS file is not there, or is none.
        DeviceUnavailable: CUDA was asked for and is not there.
        AddressUnavailable: a port is taken.
    """
    async with open_supervisor(settings) as supervisor:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.signalled)
        await supervisor.run()


@asynccontextmanager
async def open_supervisor(settings: ServerSettings) -> AsyncIterator["Supervisor"]:
    """Take both ports and answer over HTTP; workers start when the supervisor runs.

    Raises:
        AddressUnavailable: a port is taken.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="lenserve-", ignore_cleanup_errors=True)
        )
        dealer: Dealer | None = None
        if settings.transport == "h2":
            dealer = await stack.enter_async_context(Dealer(settings.host, settings.grpc_port))
            port = dealer.port
        else:  # grpcio takes no connection that another has accepted
            reserved = stack.enter_context(reserve_port(settings.host, settings.grpc_port))
            port = reserved.getsockname()[1]
        owner = stack.enter_context(_owner_socket(Path(folder))) if settings.device_process else None
        supervisor = Supervisor(settings.of_worker(port), Path(folder), dealer=dealer, owner=owner)
        http = await stack.enter_async_context(
            HttpServer(
                host=settings.host,
                port=settings.http_port,
                registry=supervisor.metrics.registry,
                live=lambda: supervisor.live,
                ready=lambda: not supervisor.problem,
                problem=lambda: supervisor.problem,
            )
        )
        supervisor.http_port = http.port
        yield supervisor


def _owner_socket(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "owner.sock"))
    listener.listen()
    return listener


class Supervisor:
    """The workers, all together. `run` starts them and returns when they have ended."""

    def __init__(
        self,
        settings: ServerSettings,
        folder: Path,
        *,
        dealer: Dealer | None,
        owner: socket.socket | None,
    ) -> None:
        """Store the options.

        Args:
            settings: of each worker.
            folder: in which they count together.
            dealer: deals connections to them. Without one they listen on a port that they share.
            owner: listens for the owner of the device, which inherits it, and stays when that dies.
        """
        self.metrics = WorkerMetrics(folder, self._pids)
        self.http_port = settings.http_port
        keep = partial(WorkerProcess, folder=folder, on_report=self._note, on_death=self.metrics.died)
        address = None if owner is None else Path(owner.getsockname())
        self.workers: list[WorkerProcess] = [
            keep(
                Order(worker=number, settings=settings, owner=address),
                on_break=self._replace_owner,
                dealer=dealer,
            )
            for number in range(1, settings.processes + 1)
        ]
        if owner is not None:
            order = Order(worker=_OWNER_NUMBER, settings=settings, listener=owner.fileno())
            self.workers.append(keep(order, command=OWNER))
        self._settings = settings
        self._dealer = dealer
        self._stop = asyncio.Event()
        self._has_started = False

    @property
    def live(self) -> bool:
        """Whether every worker is a process whose engines work."""
        return all(worker.live for worker in self.workers)

    @property
    def problem(self) -> str:
        """Why requests are not welcome, worker by worker; empty if they are."""
        if self._stop.is_set():
            return "the server is stopping"
        return "; ".join(worker.problem for worker in self.workers if worker.problem)

    def signalled(self) -> None:
        """Stop gracefully; the second time, at once."""
        if not self._stop.is_set():
            self._stop.set()
            return
        for worker in self.workers:
            worker.kill()
        sys.exit(1)

    async def run(self) -> None:
        """Start the workers, replace those that die, and stop them all when signalled.

        Raises:
            LenserveError: whatever kept a first worker from starting.
        """
        running = {asyncio.create_task(worker.keep_running()): worker for worker in self.workers}
        stop = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
        if stop in done:
            _log.info(
                "stopping", extra={"workers": len(self.workers), "lame_duck_s": self._settings.lame_duck_s}
            )
        await self._end(running)
        stop.cancel()
        failures = [failure for task in running if (failure := task.exception())]  # looked at, all of them
        if failures:
            raise failures[0]
        _log.info("stopped")

    async def _end(self, running: dict[asyncio.Task[None], WorkerProcess]) -> None:
        if self._dealer is not None:
            self._dealer.end()
        for worker in self.workers:
            worker.stop()
        patience_s = self._settings.lame_duck_s + self._settings.drain_timeout_s + _ENDING_S
        _, late = await asyncio.wait(running, timeout=patience_s)
        for task in late:
            _log.error(
                "worker_killed", extra={"worker": running[task].number, "reason": "it did not end in time"}
            )
            running[task].kill()
        await asyncio.wait(running)

    def _replace_owner(self) -> None:
        for worker in self.workers:
            if worker.number == _OWNER_NUMBER:
                worker.replace()

    def _pids(self) -> dict[int, int]:
        return {worker.number: worker.pid for worker in self.workers if worker.pid is not None}

    def _note(self) -> None:
        for worker in self.workers:
            self.metrics.is_ready(worker.number, ready=not worker.problem)
        if not self._has_started and all(worker.report for worker in self.workers):
            self._has_started = True
            self._log_start()

    def _log_start(self) -> None:
        settings = self._settings
        addresses = {
            "grpc": f"{settings.host}:{settings.grpc_port}",
            "http": f"{settings.host}:{self.http_port}",
        }
        wire = {"transport": settings.transport, "tls": settings.tls_cert_file is not None}
        more = {"repository": str(settings.repository), "workers": settings.processes}
        _log.info("listening", extra={**addresses, **wire, **more})
        if self.problem:
            _log.error("not_ready", extra={"reason": self.problem})
        else:
            models = sorted(
                {model for worker in self.workers if worker.report for model in worker.report.models}
            )
            _log.info("ready", extra={"models": ", ".join(models) or "none yet: the repository is empty"})
