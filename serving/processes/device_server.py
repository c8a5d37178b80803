"""The device server: loads each network once, and runs it for all workers. Run with `python -m`.

It receives its command and sends reports like a worker, and exits after the last worker has disconnected. The
supervisor holds the listening socket: workers that connect while the device server is down wait for its
successor.
"""

import signal

if __name__ == "__main__":  # as in worker_main.py
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from serving.batching.batcher import Batcher
from serving.batching.policy import BatchPolicy
from serving.engine.base import Engine
from serving.engine.devices import find_device
from serving.engine.memory_errors import is_out_of_memory
from serving.engine.onnx import close
from serving.engine.remote.protocol import MAX_TEXT_BYTES, RunRequest, RunResult, SharedMemory
from serving.engine.tuning import load_tuned
from serving.errors import BundleError, EngineError, LenserveError, OutOfMemory
from serving.logs import flush_logs
from serving.processes.messages import WorkerReport
from serving.processes.supervisor_channel import SupervisorChannel, run_supervised
from serving.transports.ports import accept

_log = logging.getLogger(__name__)

_File = tuple[str, int, int]  # path, inode and mtime in ns: a replaced file is a different network


@dataclass(slots=True)
class _SharedNetwork:
    """A loaded network and the number of connections that use it."""

    batcher: Batcher
    stack: AsyncExitStack  # closes the batcher, then the engine
    users: int = 0


@dataclass(slots=True)
class DeviceServer:
    """Loads networks and serves the connections of workers. Each network has one batcher."""

    load: Callable[[Path], Engine]
    policy: BatchPolicy
    loaded: dict[_File, _SharedNetwork] = field(default_factory=dict)
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    open_networks: int = 0  # loaded and not yet closed
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # set when a network was closed

    async def serve(self, listener: socket.socket) -> None:
        """Accept and serve connections until cancelled."""
        listener.setblocking(False)  # noqa: FBT003 - its only parameter
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._serve_connection(await accept(listener)))

    async def wait_until_hung(self, hung_run_s: float) -> None:
        """Wait until a network does not finish a batch: a device may hang for ever."""
        while not any(each.batcher.running_s > hung_run_s for each in self.loaded.values()):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(hung_run_s / 10)

    async def wait_until_unused(self) -> None:
        """Wait until no worker uses any network, and all are closed."""
        while self.open_networks:
            self.closed.clear()
            await self.closed.wait()

    async def _serve_connection(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003 - its only parameter
        with connection:
            try:
                memory, name = await _receive_opening(connection)
                with closing(memory):
                    await self._serve_runs(connection, memory, Path(name))
            except ConnectionError:  # the worker has disconnected
                pass
            except Exception:  # noqa: BLE001 - other connections must continue
                _log.exception("connection_failed")

    async def _serve_runs(self, connection: socket.socket, memory: SharedMemory, model_file: Path) -> None:
        try:
            file, loaded = await self._acquire(model_file)
        except Exception as error:  # noqa: BLE001 - a bad file must not affect other networks
            substitute = BundleError(f"{model_file} cannot be loaded: {error}")
            await _send(connection, _known_error(error, substitute))
            return
        try:
            await _send(connection, RunResult(0, 0, 0))
            while True:
                run = RunRequest.unpack(await _receive(connection, RunRequest.layout.size))
                try:
                    result = memory.write_output(await loaded.batcher.submit(memory.images(run)))
                except Exception as error:  # noqa: BLE001 - a failed run must not end the connection
                    await _send(connection, _known_error(error, EngineError(f"the network failed: {error}")))
                else:
                    await _send(connection, result)
        finally:
            await self._release(file, loaded)

    async def _acquire(self, model_file: Path) -> tuple[_File, _SharedNetwork]:
        async with self.loading:  # serialized, so that each network is loaded once
            try:
                stat = await asyncio.to_thread(model_file.stat)
            except OSError as error:
                raise BundleError(f"{model_file} cannot be loaded: {error.strerror}") from error
            file = (str(model_file), stat.st_ino, stat.st_mtime_ns)
            if file not in self.loaded:
                engine = await asyncio.to_thread(self.load, model_file)
                stack = AsyncExitStack()
                stack.push_async_callback(asyncio.to_thread, close, engine)
                batcher = await stack.enter_async_context(Batcher(engine.run, self.policy))
                self.loaded[file] = _SharedNetwork(batcher, stack)
                self.open_networks += 1
                _log.info("network_loaded", extra={"file": str(model_file)})
            loaded = self.loaded[file]
            loaded.users += 1
            return file, loaded

    async def _release(self, file: _File, loaded: _SharedNetwork) -> None:
        loaded.users -= 1
        if not loaded.users:
            del self.loaded[file]
            try:
                await loaded.stack.aclose()
                _log.info("network_unloaded", extra={"file": file[0]})
            finally:
                self.open_networks -= 1
                self.closed.set()


async def _receive_opening(connection: socket.socket) -> tuple[SharedMemory, str]:
    """Receive the shared memory and the file name that open a connection."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
    opening, descriptors, _, _ = socket.recv_fds(connection, RunRequest.layout.size, 1)
    if not descriptors:
        raise ConnectionResetError("the worker disconnected before it sent its shared memory")
    memory = SharedMemory(descriptors[0])
    try:
        name = await _receive(connection, min(RunRequest.unpack(opening).height, MAX_TEXT_BYTES))
        return memory, os.fsdecode(name)
    except BaseException:
        memory.close()
        raise


async def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await asyncio.get_running_loop().sock_recv(connection, length - len(data))
        if not more:
            raise ConnectionResetError("the connection ended")
        data += more
    return data


def _known_error(error: Exception, substitute: LenserveError) -> LenserveError:
    """Return an error that is known, or means too little memory; otherwise log it and return a substitute."""
    if isinstance(error, LenserveError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(str(substitute))
    _log.error("unforeseen_error", extra={"reason": str(substitute)}, exc_info=error)
    return substitute


async def _send(connection: socket.socket, result: RunResult | Exception) -> None:
    text = b""
    if isinstance(result, Exception):
        text = f"{type(result).__name__}: {result}".encode(errors="replace")[:MAX_TEXT_BYTES]
        result = RunResult(0, 0, 0, len(text))
    await asyncio.get_running_loop().sock_sendall(connection, result.pack() + text)


def main() -> int:
    """Run the device server until it is stopped; return 1 if it cannot start."""
    return run_supervised(_serve)


async def _serve(control: SupervisorChannel) -> None:
    settings = control.command.settings
    device = find_device(settings.device, allow_tf32=settings.allow_tf32, cuda_graphs=settings.cuda_graphs)
    size = settings.max_batch_size
    load = partial(
        load_tuned,
        device=device,
        threads=settings.engine_threads,
        cores=settings.cores,
        max_batch_size=size,
    )
    device_server = DeviceServer(load, BatchPolicy(size))
    with socket.socket(fileno=control.command.listener) as listener:
        # `serve` only ends with an error, which ends the group and this process; a successor takes over.
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(device_server.serve(listener))
            watching = tasks.create_task(_exit_if_hung(device_server, settings.hung_run_s))
            control.report(WorkerReport())
            await control.wait_for_stop()
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    device_server.wait_until_unused(), settings.lame_duck_s + settings.drain_timeout_s
                )
            serving.cancel()
            watching.cancel()


async def _exit_if_hung(device_server: DeviceServer, hung_run_s: float) -> None:
    """Exit once a batch does not end, without waiting for its thread: a successor takes over."""
    await device_server.wait_until_hung(hung_run_s)
    _log.error("device_hangs", extra={"reason": f"a batch has not ended after {hung_run_s:g} s"})
    flush_logs()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
