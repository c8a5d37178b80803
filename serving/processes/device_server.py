"""The owner of the device: loads each network once, and runs it for all workers. `python -m` runs it.

It is ordered and reports as a worker does, and ends when no worker needs it. Its socket is the supervisor's:
workers that come while there is no owner wait there for the next one.
"""

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
from serving.engine.onnx import close
from serving.engine.remote.protocol import MAX_WORDS_BYTES, Answer, Memory, Run
from serving.engine.tuning import load_tuned
from serving.errors import BundleError, EngineError, LenserveError
from serving.processes.control import Orders, take_orders
from serving.processes.messages import Report
from serving.transports.ports import accept

_log = logging.getLogger(__name__)

_File = tuple[str, int, int]


@dataclass(slots=True)
class _Loaded:
    """A network that some workers use."""

    batcher: Batcher
    stack: AsyncExitStack  # closes the batcher, then the engine
    users: int = 0


@dataclass(slots=True)
class Owner:
    """The networks, and the connections of workers to them."""

    load: Callable[[Path], Engine]
    policy: BatchPolicy
    loaded: dict[_File, _Loaded] = field(default_factory=dict)
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # by the last user of a network

    async def serve(self, listener: socket.socket) -> None:
        """Take connections until cancelled."""
        listener.setblocking(False)  # noqa: FBT003 - its only parameter
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._answer_all(await accept(listener)))

    async def unused(self) -> None:
        """Wait until no worker uses a network."""
        while self.loaded:
            self.left.clear()
            await self.left.wait()

    async def _answer_all(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003 - its only parameter
        with connection:
            try:
                memory, name = await _opened(connection)
                with closing(memory):
                    await self._answer_runs(connection, memory, Path(name))
            except ConnectionError:  # the worker has left
                pass
            except Exception:  # noqa: BLE001 - whatever it is, the other connections carry on
                _log.exception("connection_failed")

    async def _answer_runs(self, connection: socket.socket, memory: Memory, model_file: Path) -> None:
        try:
            file, loaded = await self._take(model_file)
        except Exception as error:  # noqa: BLE001 - whatever a file trips over refuses that file alone
            refusal = BundleError(f"{model_file} cannot be loaded: {error}")
            await _send(connection, _ours(error, refusal))
            return
        try:
            await _send(connection, Answer(0, 0, 0))
            while True:
                run = Run.unpack(await _received(connection, Run.layout.size))
                try:
                    answer = memory.write_output(await loaded.batcher.submit(memory.images(run)))
                except Exception as error:  # noqa: BLE001 - whatever a run trips over fails that run alone
                    await _send(connection, _ours(error, EngineError(f"the network failed: {error}")))
                else:
                    await _send(connection, answer)
        finally:
            await self._leave(file, loaded)

    async def _take(self, model_file: Path) -> tuple[_File, _Loaded]:
        async with self.loading:  # one at a time: each is loaded once
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
                self.loaded[file] = _Loaded(batcher, stack)
                _log.info("network_loaded", extra={"file": str(model_file)})
            loaded = self.loaded[file]
            loaded.users += 1
            return file, loaded

    async def _leave(self, file: _File, loaded: _Loaded) -> None:
        loaded.users -= 1
        if not loaded.users:
            del self.loaded[file]
            self.left.set()
            await loaded.stack.aclose()
            _log.info("network_unloaded", extra={"file": file[0]})


async def _opened(connection: socket.socket) -> tuple[Memory, str]:
    """The memory and the file that a worker comes with."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
    opening, descriptors, _, _ = socket.recv_fds(connection, Run.layout.size, 1)
    if not descriptors:
        raise ConnectionResetError("nobody was there")
    memory = Memory(descriptors[0])
    try:
        name = await _received(connection, min(Run.unpack(opening).height, MAX_WORDS_BYTES))
        return memory, os.fsdecode(name)
    except BaseException:
        memory.close()
        raise


async def _received(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await asyncio.get_running_loop().sock_recv(connection, length - len(data))
        if not more:
            raise ConnectionResetError("the connection ended")
        data += more
    return data


def _ours(error: Exception, substitute: LenserveError) -> LenserveError:
    """What the worker is told: the error, or its substitute where nobody foresaw it, which is logged."""
    if isinstance(error, LenserveError):
        return error
    _log.error("unforeseen_error", extra={"reason": str(substitute)}, exc_info=error)
    return substitute


async def _send(connection: socket.socket, answer: Answer | Exception) -> None:
    words = b""
    if isinstance(answer, Exception):
        words = f"{type(answer).__name__}: {answer}".encode(errors="replace")[:MAX_WORDS_BYTES]
        answer = Answer(0, 0, 0, len(words))
    await asyncio.get_running_loop().sock_sendall(connection, answer.pack() + words)


def main() -> int:
    """Own the device until told to stop; 1 if it cannot."""
    return take_orders(_own)


async def _own(orders: Orders) -> None:
    settings = orders.order.settings
    device = find_device(settings.device, allow_tf32=settings.allow_tf32, cuda_graphs=settings.cuda_graphs)
    size = settings.max_batch_size
    load = partial(
        load_tuned,
        device=device,
        threads=settings.engine_threads,
        cores=settings.cores,
        max_batch_size=size,
    )
    owner = Owner(load, BatchPolicy(size))
    with socket.socket(fileno=orders.order.listener) as listener:
        # Serving ends only by an error. The group then ends this process: its successor finds who waits.
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(owner.serve(listener))
            orders.report(Report(ready=True))
            await orders.end()
            with suppress(TimeoutError):
                await asyncio.wait_for(owner.unused(), settings.lame_duck_s + settings.drain_timeout_s)
            serving.cancel()


if __name__ == "__main__":
    sys.exit(main())
