"""Worker processes that apply loads together. They exit when their parent exits, even if it is killed."""

import asyncio
import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from serving.bench.load import run_load
from serving.bench.plan import Loop
from serving.bench.points import WorkerResult
from serving.bench.target import Target
from serving.commandline.children import sigint_blocked
from serving.errors import LenserveError

_HEAD_START_S = 0.1  # time for all workers to receive their shares
_STOP_TIMEOUT_S = 5.0
_TICK_S = 0.1


class WorkerLost(LenserveError):
    """A worker process died during a measurement."""


class Workers:
    """Worker processes. `start_workers` starts and stops them."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def start(self, loop: Loop, *, warm_up_s: float, window_s: float) -> None:
        """Send each worker its share. All start at the same time: processes share the monotonic clock."""
        starts_at_s = time.monotonic() + _HEAD_START_S
        for index, connection in enumerate(self._connections):
            share = loop.share(index, len(self._connections))
            with _worker_lost():
                connection.send((share, starts_at_s, warm_up_s, window_s, index))

    def results(self, on_tick: Callable[[], None]) -> list[WorkerResult]:
        """Wait for the results of all workers, and call on_tick every 0.1 s.

        Raises:
            WorkerLost: a worker has died.
        """
        waiting, results = list(self._connections), []
        while waiting:
            readable = wait(waiting, _TICK_S)
            with _worker_lost():
                results += [connection.recv() for connection in waiting if connection in readable]
            waiting = [connection for connection in waiting if connection not in readable]
            on_tick()
        return results


@contextmanager
def start_workers(count: int, target: Target) -> Iterator[Workers]:
    """Spawn worker processes, and stop them at the end. gRPC does not survive a fork."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        for _ in range(count):
            parent_end, worker_end = context.Pipe()
            process = context.Process(target=_work, args=(worker_end, target), daemon=True)
            with sigint_blocked():
                process.start()
            worker_end.close()
            connections.append(parent_end)
            processes.append(process)
        with _worker_lost():
            for connection in connections:
                connection.recv()  # the worker has finished its imports
        yield Workers(connections)
    finally:
        _stop(connections, processes)


def _stop(connections: Sequence[Connection], processes: Sequence[SpawnProcess]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _work(connection: Connection, target: Target) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent has exited
        connection.send(None)
        while True:
            loop, starts_at_s, warm_up_s, window_s, seed = connection.recv()
            load = run_load(
                target, loop, starts_at_s=starts_at_s, warm_up_s=warm_up_s, window_s=window_s, seed=seed
            )
            connection.send(asyncio.run(load))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed: no process would read the result


@contextmanager
def _worker_lost() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise WorkerLost(
            "a client process died during the measurement; check whether the system ran out of memory"
        ) from error
