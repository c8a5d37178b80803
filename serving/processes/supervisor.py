"""Starts workers, replaces those that die, stops them, and serves their metrics and probes."""

import asyncio
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from serving.addresses import join_address
from serving.admin.http_server import HttpServer
from serving.errors import UsageError
from serving.event_loop import LoopMonitor
from serving.metrics.shared_counts import CountsMemory
from serving.processes.messages import WorkerCommand
from serving.processes.metrics import WorkerMetrics
from serving.processes.worker_process import DEVICE_SERVER, WorkerProcess
from serving.settings import ServerSettings
from serving.transports.connection_passing import ConnectionDistributor
from serving.transports.ports import reserve_port

# Time for a worker to exit after lame_duck_s and drain_timeout_s, before it is killed.
_EXIT_S = 3.0

_DEVICE_SERVER_NUMBER = 0  # workers are numbered from 1

_log = logging.getLogger(__name__)


async def supervise(settings: ServerSettings) -> None:
    """Run workers until SIGTERM or SIGINT, then stop them gracefully; a second signal kills them.

    Raises:
        UsageError: the repository, the token file or a TLS file is missing or invalid.
        DeviceUnavailable: CUDA was requested but is not available.
        AddressUnavailable: a port is taken.
    """
    async with open_supervisor(settings) as supervisor:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.handle_signal)
        loop.add_signal_handler(signal.SIGHUP, supervisor.reread)
        await supervisor.run()


@asynccontextmanager
async def open_supervisor(settings: ServerSettings) -> AsyncIterator["Supervisor"]:
    """Bind both ports and serve HTTP; the workers start in `Supervisor.run`.

    Raises:
        AddressUnavailable: a port is taken.
    """
    async with AsyncExitStack() as stack:
        memories = {
            number: CountsMemory.create(f"lenserve-counts-{number}")
            for number in range(1, settings.processes + 1)
        }
        for memory in memories.values():
            stack.callback(memory.close)
        distributor: ConnectionDistributor | None = None
        if settings.transport == "h2":
            distributor = await stack.enter_async_context(
                ConnectionDistributor(
                    settings.host, settings.grpc_port, max_connections=settings.max_connections
                )
            )
            port = distributor.port
        else:  # grpcio cannot serve connections that another process accepted
            reserved = stack.enter_context(reserve_port(settings.host, settings.grpc_port))
            port = reserved.getsockname()[1]
        listener = stack.enter_context(_device_server_socket()) if settings.device_process else None
        monitor = await stack.enter_async_context(LoopMonitor(hung_after_s=settings.hung_after_s))
        supervisor = Supervisor(
            settings.of_worker(port), memories, distributor=distributor, device_server_listener=listener
        )
        http = await stack.enter_async_context(
            HttpServer(
                host=settings.http_address,
                port=settings.http_port,
                registry=supervisor.metrics.registry,
                why_not_live=lambda: monitor.problem or supervisor.why_not_live,
                why_not_ready=lambda: monitor.problem or supervisor.problem,
            )
        )
        supervisor.http_port = http.port
        yield supervisor


@contextmanager
def _device_server_socket() -> Iterator[socket.socket]:
    """Listen on a Unix socket in a separate folder.

    Raises:
        UsageError: there is no folder for it.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="lenserve-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(
            f"--device-process needs a folder for temporary files: {error}; free one, or set TMPDIR"
        ) from error
    with folder as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Path(path) / "device_server.sock"))
        listener.listen()
        yield listener


class Supervisor:
    """Supervises all workers. `run` starts them and returns after they have exited."""

    def __init__(
        self,
        settings: ServerSettings,
        memories: Mapping[int, CountsMemory],
        *,
        distributor: ConnectionDistributor | None,
        device_server_listener: socket.socket | None,
    ) -> None:
        """Store the options.

        Args:
            settings: settings of each worker.
            memories: the counters of all workers, by number.
            distributor: passes connections to the workers; without it they share a listening port.
            device_server_listener: inherited by the device server and its successors.
        """
        self.metrics = WorkerMetrics(
            memories,
            self._pids,
            refused_connections=lambda: 0 if distributor is None else distributor.refused.count,
            is_ready=lambda: not self.problem,
        )
        self.http_port = settings.http_port
        make = partial(
            WorkerProcess,
            on_report=self._update,
            on_death=self.metrics.count_death,
            on_hang=self.metrics.count_hang,
        )
        listener = device_server_listener
        address = None if listener is None else Path(listener.getsockname())
        descriptors = tuple(memories[number].descriptors for number in sorted(memories))
        self._serving: list[WorkerProcess] = [
            make(
                WorkerCommand(worker=number, settings=settings, device_server=address, counts=descriptors),
                on_break=self._replace_device_server,
                distributor=distributor,
            )
            for number in range(1, settings.processes + 1)
        ]
        self._device_servers: list[WorkerProcess] = []  # at most one
        if listener is not None:
            command = WorkerCommand(
                worker=_DEVICE_SERVER_NUMBER, settings=settings, listener=listener.fileno()
            )
            self._device_servers.append(make(command, argv=DEVICE_SERVER))
        self.workers = (*self._serving, *self._device_servers)
        self._settings = settings
        self._distributor = distributor
        self._stop = asyncio.Event()
        self._has_started = False

    @property
    def why_not_live(self) -> str:
        """Why the server is not live; empty while one worker and the device server are, or may be again."""
        return self._join(lambda worker: worker.why_not_live)

    @property
    def problem(self) -> str:
        """Why the server is not ready; empty while one worker and the device server are."""
        return "the server is stopping" if self._stop.is_set() else self._join(lambda worker: worker.problem)

    def _join(self, problem: Callable[[WorkerProcess], str]) -> str:
        """Join the problems of the device server, and of the workers if all have one: those stop calls."""
        workers = [problem(each) for each in self._serving]
        return "; ".join(
            filter(None, [*(workers if all(workers) else ()), *map(problem, self._device_servers)])
        )

    def handle_signal(self) -> None:
        """Stop gracefully; on the second signal, kill all workers and exit."""
        if not self._stop.is_set():
            self._stop.set()
            return
        for worker in self.workers:
            worker.kill()
        sys.exit(1)

    def reread(self) -> None:
        """Let each worker look for changed files now."""
        for worker in self.workers:
            worker.reread()

    async def run(self) -> None:
        """Start the workers, replace those that die, and stop them all when signalled.

        Raises:
            LenserveError: the first start of a worker failed.
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
        failures = [
            failure for task in running if (failure := task.exception())
        ]  # retrieve all exceptions: asyncio warns of the others
        if failures:
            raise failures[0]
        _log.info("stopped")

    async def _end(self, running: dict[asyncio.Task[None], WorkerProcess]) -> None:
        if self._distributor is not None:
            self._distributor.close_with_last_worker()
        for worker in self.workers:
            worker.stop()
        patience_s = self._settings.lame_duck_s + self._settings.drain_timeout_s + _EXIT_S
        _, late = await asyncio.wait(running, timeout=patience_s)
        for task in late:
            _log.error(
                "worker_killed",
                extra={"worker": running[task].number, "reason": "the worker did not exit in time"},
            )
            running[task].kill()
        await asyncio.wait(running)

    def _replace_device_server(self) -> None:
        for each in self._device_servers:
            each.replace()

    def _pids(self) -> dict[int, int]:
        return {worker.number: worker.pid for worker in self.workers if worker.pid is not None}

    def _update(self) -> None:
        for worker in self._serving:
            worker.compare(self._serving)
        for worker in self.workers:
            worker.show_problem()
            self.metrics.set_ready(worker.number, ready=not worker.problem)
        if not self._has_started and all(worker.report for worker in self.workers):
            self._has_started = True
            self._log_start()

    def _log_start(self) -> None:
        settings = self._settings
        addresses = {
            "grpc": join_address(settings.host, settings.grpc_port),
            "http": join_address(settings.http_address, self.http_port),
        }
        wire = {"transport": settings.transport, "tls": settings.tls_cert_file is not None}
        more = {"repository": settings.repository, "workers": settings.processes}
        _log.info("listening", extra={**addresses, **wire, **more})
        if self.problem:
            _log.error("not_ready", extra={"reason": self.problem})
        else:
            models = sorted(
                {model for worker in self.workers if worker.report for model in worker.report.models}
            )
            _log.info(
                "ready",
                extra={"models": ", ".join(models) or "none yet: the repository has no <model>/<version>"},
            )
