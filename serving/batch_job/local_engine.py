"""Runs a batch in processes of this machine. An image that ends its process becomes a row with an error.

Each process has up to two chunks, so that it never waits for this one. If it dies, its first chunk is divided
in two and tried again, until the image that ended it is alone.
"""

import multiprocessing
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from serving.batch_job.columns import Columns, failed_columns
from serving.batch_job.file_classifier import ClassifierOptions, FileClassifier
from serving.commandline.children import sigint_blocked
from serving.errors import LenserveError, OutOfMemory

_CHUNKS_AHEAD = 2
_MOST_DEATHS = 100
_STOP_TIMEOUT_S = 5.0
_STARTED = "started"
_OUT_OF_MEMORY = 99  # exit code of a process of this module

Classify = Callable[[Columns], Columns]


class WorkerDied(LenserveError):
    """The process that read or decoded an image died."""


class BatchFailed(LenserveError):
    """The processes of a batch cannot work."""


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    started: bool = False
    chunks: deque[range] = field(default_factory=deque)  # sent and not answered, in their order


class LocalEngine:
    """Worker processes. They exit when this process does, even if it is killed."""

    def __init__(
        self,
        options: ClassifierOptions,
        batch_of: Callable[[range], Columns],
        *,
        processes: int,
        load: Callable[[ClassifierOptions], Classify] = FileClassifier,
        most_deaths: int = _MOST_DEATHS,
    ) -> None:
        """Store the options.

        Args:
            options: of the classifier of every process.
            batch_of: returns the columns of a range of rows.
            processes: how many to start, at least 1.
            load: loads the classifier of a process; a function or class of a module.
            most_deaths: processes that may die after they have loaded the network; then the batch fails.
        """
        self._options = options
        self._batch_of = batch_of
        self._processes = processes
        self._load = load
        self._deaths_left = most_deaths
        self._workers: list[_Worker] = []
        self._again: deque[range] = deque()  # chunks of processes that have died

    def run(self, chunks: Iterable[range]) -> Iterator[Columns]:
        """Classify chunks; yield their results in the order in which they are ready.

        Raises:
            BatchFailed: the network cannot be loaded, or too many processes died.
        """
        waiting = iter(chunks)
        try:
            for _ in range(self._processes):
                self._workers.append(self._start())  # one by one: `_stop` ends those that have started
            while True:
                for worker in self._workers:
                    self._fill(worker, waiting)
                busy = [worker for worker in self._workers if worker.chunks]
                if not busy:
                    return
                ready = wait([worker.connection for worker in busy])
                for worker in [each for each in busy if each.connection in ready]:
                    yield from self._receive(worker)
        finally:
            self._stop()

    def _fill(self, worker: _Worker, waiting: Iterator[range]) -> None:
        while len(worker.chunks) < _CHUNKS_AHEAD:
            chunk = self._again.popleft() if self._again else next(waiting, None)
            if chunk is None:
                return
            worker.chunks.append(chunk)
            with suppress(OSError):  # it has died: `_receive` notices
                worker.connection.send(self._batch_of(chunk))

    def _receive(self, worker: _Worker) -> Iterator[Columns]:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        if message == _STARTED:
            worker.started = True
        elif isinstance(message, str):
            raise BatchFailed(message)
        else:
            worker.chunks.popleft()
            yield message

    def _bury(self, worker: _Worker) -> Iterator[Columns]:
        """Replace a dead process, and put its chunks back; yield the row of an image that ended it."""
        worker.process.join(_STOP_TIMEOUT_S)
        code = worker.process.exitcode
        ended = "ran out of memory" if code == _OUT_OF_MEMORY else f"ended with exit code {code}"
        if not worker.started:
            raise BatchFailed(
                f"a process {ended} while it loaded the network: if memory is short, use fewer --processes"
            )
        if not self._deaths_left:
            raise BatchFailed(
                f"too many processes died, the last {ended}: if memory is short, use fewer --processes; then "
                "run the command again"
            )
        self._deaths_left -= 1
        suspect, *others = worker.chunks
        self._again.extendleft(reversed(others))
        if len(suspect) > 1:
            self._again.extendleft(reversed(halves(suspect)))
        else:
            error = WorkerDied(f"the process that decoded this image {ended}")
            yield failed_columns(self._batch_of(suspect), error)
        worker.connection.close()
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # threads of libraries do not survive a fork
        parent_end, worker_end = context.Pipe()
        process = context.Process(target=_work, args=(worker_end, self._load, self._options), daemon=True)
        with sigint_blocked():
            process.start()
        worker_end.close()  # so that its death ends the connection
        return _Worker(process, parent_end)

    def _stop(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()  # it holds nothing that must be kept
        for worker in self._workers:
            worker.process.join(_STOP_TIMEOUT_S)


def _work(
    connection: Connection, load: Callable[[ClassifierOptions], Classify], options: ClassifierOptions
) -> None:
    batches: queue.SimpleQueue[Columns] = queue.SimpleQueue()
    threading.Thread(target=_receive_all, args=(connection, batches), daemon=True).start()
    try:
        classify = load(options)
    except LenserveError as error:
        connection.send(str(error))
        return
    connection.send(_STARTED)
    while True:
        batch = batches.get()
        try:
            result = classify(batch)
        except (MemoryError, OutOfMemory):  # a new process has what this one cannot give back
            os._exit(_OUT_OF_MEMORY)
        connection.send(result)


def _receive_all(connection: Connection, batches: "queue.SimpleQueue[Columns]") -> None:
    """Take batches from the pipe at any time, so that the parent never waits to send one."""
    with suppress(EOFError, OSError):
        while True:
            batches.put(connection.recv())
    os._exit(1)  # the parent is gone: no process would read the results


def halves(chunk: range) -> tuple[range, range]:
    """Divide a chunk of at least two rows."""
    middle = len(chunk) // 2
    return chunk[:middle], chunk[middle:]


def chunks_of(ranges: Sequence[range], size: int) -> Iterator[range]:
    """Divide ranges of rows into chunks of at most `size`."""
    for rows in ranges:
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
