"""Worker processes that put loads on a server together. They end with their parent, whatever ends it."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from serving.bench.load import run_load
from serving.bench.plan import Loop
from serving.bench.points import Tally
from serving.bench.target import Target
from serving.errors import LenserveError

_HEAD_START_S = 0.1  # for every worker to get its task
_STOP_TIMEOUT_S = 5.0
_TICK_S = 0.1


class WorkerLost(LenserveError):
    """A worker process ended before its work."""


class Workers:
    """Processes that wait for loads. Made by `start_workers`, which also ends them."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    def start(self, loop: Loop, *, warm_up_s: float, window_s: float) -> None:
        """Give each its share, to begin at the same moment: monotonic clocks of one machine agree."""
        starts_at_s = time.monotonic() + _HEAD_START_S
        for index, connection in enumerate(self._connections):
            share = loop.share(index, len(self._connections))
            with _or_lost():
                connection.send((share, starts_at_s, warm_up_s, window_s, index))

    def tallies(self, on_tick: Callable[[], None]) -> list[Tally]:
        """Wait for all of them and take what they counted; call on_tick now and then meanwhile.

        Raises:
            WorkerLost: as soon as one has ended.
        """
        waiting, tallies = list(self._connections), []
        while waiting:
            speaking = wait(waiting, _TICK_S)
            with _or_lost():
                tallies += [connection.recv() for connection in waiting if connection in speaking]
            waiting = [connection for connection in waiting if connection not in speaking]
            on_tick()
        return tallies


@contextmanager
def start_workers(count: int, target: Target) -> Iterator[Workers]:
    """Start them fresh: gRPC does not survive a fork."""
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, target), daemon=True)
            with _deaf_to_ctrl_c():
                process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        with _or_lost():
            for connection in connections:
                connection.recv()  # it has imported everything and waits
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
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
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
        os._exit(1)  # it was killed: nobody waits for our tally


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """For children to inherit: the terminal sends Ctrl-C to them, too, but it is the parent who ends them.

    What arrives meanwhile is raised afterwards: gRPC's threads would let it through to a half-started child.
    """
    resource_tracker.ensure_running()  # started by the first child, it would unblock the signal
    arrived: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: arrived.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
    if arrived:
        raise KeyboardInterrupt


@contextmanager
def _or_lost() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise WorkerLost("a client process ended before its work; was it killed for memory?") from error
