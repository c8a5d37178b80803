"""Runs queued requests in batches. Independent of image content, ONNX and gRPC.

policy.py decides which requests run; `Batcher` waits, dispatches and answers. By default the engine does not
wait for a fuller batch: when it is free, it runs what is queued, up to the largest batch.
"""

import asyncio
import logging
import math
import time
import traceback
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np

from serving.batching.backlog import Backlog
from serving.batching.policy import BatchPolicy, QueuedRequest, take_batch
from serving.bundle.images import Pixels
from serving.engine.base import Output
from serving.engine.memory_errors import is_out_of_memory
from serving.errors import DeadlineExceeded, EngineError, ModelUnavailable, OutOfMemory, forget_frames

NO_DEADLINE_S = math.inf

# After this many consecutive batches of one request, the next request runs at once instead of at the end of
# the event loop's iteration. One in _SINGLE_RUNS requests still waits, to detect requests that arrive
# together again.
_SINGLE_RUNS = 8

# Each priority level delays a request by this much relative to more urgent ones. The delay is bounded, so no
# request starves.
PRIORITY_STEP_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(slots=True)  # not frozen: creation would take several times as long
class BatchRun:
    """One successful run of the engine, for the metrics."""

    images: int
    duration_s: float
    queued_s: Sequence[float]  # time in the queue, of each request
    output: Output


class Batcher:
    """The queue of one engine.

    Forms a batch after two iterations of the event loop, so that requests that arrive together run together.
    If a batch fails, its requests run again one at a time, so that one bad request fails alone.
    """

    def __init__(
        self,
        run: Callable[[Pixels], Output],
        policy: BatchPolicy,
        on_run: Callable[[BatchRun], None] = lambda _: None,
        *,
        max_images_on_loop: int = 0,
        backlog: Backlog | None = None,
    ) -> None:
        """Create an empty queue.

        Args:
            run: runs the engine on a batch.
            policy: how batches are formed.
            on_run: called after each successful run.
            max_images_on_loop: the largest batch that runs on the event loop, for networks that are cheaper
                than a thread switch; larger batches run in the engine's thread.
            backlog: gets the duration of each run from the queue that was not interrupted, and the batch that
                runs in the thread.
        """
        self.policy = policy
        self._run = run
        self._on_run = on_run
        self._max_images_on_loop = max_images_on_loop
        self._backlog = backlog or Backlog()
        self._queue: list[QueuedRequest] = []
        self._retries: deque[QueuedRequest] = deque()  # requests of a failed batch, to be run one by one
        self._running: list[QueuedRequest] = []  # in the thread
        self._run_began_s = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._loop: asyncio.AbstractEventLoop
        self._single_runs = 0  # consecutive batches of one request
        self._decision_due = False  # whether a decision is scheduled on the event loop
        self._drop_due = False  # whether `_drop_abandoned` is scheduled
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._stop_timer()
        self._thread.shutdown(wait=False)
        for request in (*self._running, *self._retries, *self._queue):
            _fail(request, _unloaded())

    @property
    def running_s(self) -> float:
        """How long the current run in the engine's thread has taken so far; 0 without one."""
        return time.monotonic() - self._run_began_s if self._running else 0.0

    def submit(
        self, images: Pixels, deadline_s: float = NO_DEADLINE_S, priority: int = 0
    ) -> asyncio.Future[Output]:
        """Queue images; the future is their output. Cancelling it removes them from the queue.

        Args:
            images: (n, H, W, C) uint8, 1 <= n <= max_batch_size.
            deadline_s: on the clock of time.monotonic().
            priority: 0 is the most urgent; each further level delays the request by PRIORITY_STEP_S.

        Raises:
            DeadlineExceeded: the deadline passed in the queue; the network was not run.
            EngineError: the network failed on these images.
            ModelUnavailable: the batcher was closed before the network ran.
        """
        if not 1 <= len(images) <= self.policy.max_batch_size:
            raise ValueError(
                f"{len(images)} images were submitted at once, expected 1 to {self.policy.max_batch_size}. "
                "This is a bug."
            )
        if self._closed:
            raise _unloaded()
        now_s = time.monotonic()
        result: asyncio.Future[Output] = self._loop.create_future()
        if self._single_runs >= _SINGLE_RUNS and self._may_run_now(len(images)):
            result.set_result(self._run_now(images, now_s, deadline_s))
            return result
        request = QueuedRequest(images, now_s, deadline_s, result, now_s + priority * PRIORITY_STEP_S)
        if priority or (self._queue and self._queue[-1].order_s > request.order_s):
            insort(self._queue, request, key=_order_s)
        else:
            self._queue.append(request)
        if not self._decision_due and not self._is_held_back():
            self._schedule_decision()
        return result

    def drop_abandoned(self) -> None:
        """Free the images of cancelled requests, at the end of this iteration of the event loop."""
        if not self._drop_due:
            self._drop_due = True
            self._loop.call_soon(self._drop_abandoned)

    def _drop_abandoned(self) -> None:
        self._drop_due = False
        self._queue = [request for request in self._queue if not request.abandoned]
        self._retries = deque(request for request in self._retries if not request.abandoned)

    def _may_run_now(self, images: int) -> bool:
        """After requests that came one at a time: whether to run without queueing."""
        return (
            self._single_runs % _SINGLE_RUNS != 0
            and images <= self._max_images_on_loop
            and not (self._queue or self._retries or self._running)
            and not self.policy.max_queue_delay_s
        )

    def _is_held_back(self) -> bool:
        """Whether a batch waits for more requests, and is not full yet."""
        return (
            self._timer is not None
            and sum(request.size for request in self._queue) < self.policy.max_batch_size
        )

    def _run_now(self, images: Pixels, now_s: float, deadline_s: float) -> Output:
        self._single_runs += 1
        if deadline_s <= now_s:
            raise _expired()
        try:
            output = self._run(images)
        except (EngineError, ModelUnavailable):
            raise
        except Exception as error:
            raise _engine_error(error) from error
        # The backlog does not need this run: nothing waits, and one in _SINGLE_RUNS requests is queued.
        self._record(BatchRun(len(images), time.monotonic() - now_s, (0.0,), output))
        return output

    def _schedule_decision(self) -> None:
        if not self._decision_due and not self._running:
            self._decision_due = True
            # One iteration later, so that requests that this iteration has yet to read join the batch.
            self._loop.call_soon(self._loop.call_soon, self._decide)

    def _decide(self) -> None:
        self._decision_due = False
        self._stop_timer()
        if self._closed:
            return
        batch = self._next_batch()
        if not batch:
            return
        if sum([request.size for request in batch]) <= self._max_images_on_loop:
            self._run_on_loop(batch)
        else:
            self._run_in_thread(batch)

    def _next_batch(self) -> list[QueuedRequest]:
        while self._retries:
            request = self._retries.popleft()
            if not request.abandoned:
                return [request]
        decision = take_batch(self._queue, time.monotonic(), self.policy)
        self._queue = decision.rest
        for request in decision.expired:
            _fail(request, _expired())
        self._single_runs = self._single_runs + 1 if len(decision.batch) == 1 else 0
        if decision.rest and not decision.batch:
            self._timer = self._loop.call_later(decision.wait_s, self._schedule_decision)
        return decision.batch

    def _run_on_loop(self, batch: list[QueuedRequest]) -> None:
        started_s = time.monotonic()
        try:
            output = self._run_joined(batch)
        except Exception as error:  # noqa: BLE001 - any error of the engine goes to its requests
            self._fail_or_retry(batch, error)
        else:
            self._answer(batch, output, started_s)
        self._decide_next()

    def _decide_next(self) -> None:
        """Schedule the next batch for a later iteration: answers are sent and other versions run first."""
        if self._queue or self._retries:
            self._schedule_decision()

    def _run_in_thread(self, batch: list[QueuedRequest]) -> None:
        try:
            run = self._loop.run_in_executor(self._thread, self._run_joined, batch)
        except RuntimeError as error:  # no thread can be started: the system has no memory for one
            for request in batch:
                _fail(request, _without_frames(_engine_error(error)))
            self._decide_next()
            return
        self._running, self._run_began_s = batch, time.monotonic()
        self._backlog.running_since_s = self._run_began_s
        self._backlog.running_images = sum(request.size for request in batch)
        run.add_done_callback(partial(self._end_run, batch, self._run_began_s))

    def _end_run(self, batch: list[QueuedRequest], started_s: float, run: asyncio.Future[Output]) -> None:
        self._running = []
        self._backlog.running_images = 0
        error = run.exception()
        if error is None:
            self._answer(batch, run.result(), started_s)
        elif isinstance(error, Exception):
            self._fail_or_retry(batch, error)
        if not self._closed:
            self._decide()

    def _answer(self, batch: Sequence[QueuedRequest], output: Output, started_s: float) -> None:
        at = 0
        for request in batch:
            end = at + request.size
            if not request.result.done():  # not abandoned
                request.result.set_result(output if len(batch) == 1 else output[at:end])
            at = end
        queued_s = [started_s - request.arrived_s for request in batch]
        duration_s = time.monotonic() - started_s
        if not output.interrupted:
            self._backlog.record_run(at, duration_s)
        self._record(BatchRun(at, duration_s, queued_s, output))

    def _record(self, run: BatchRun) -> None:
        try:
            self._on_run(run)
        except Exception as error:  # noqa: BLE001 - a failed recording must not fail a request
            _log.error("run_not_recorded", exc_info=error)

    def _fail_or_retry(self, batch: list[QueuedRequest], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch[0], _without_frames(_engine_error(error)))
        else:
            self._retries.extend(batch)

    def _run_joined(self, batch: Sequence[QueuedRequest]) -> Output:
        if len(batch) == 1:
            return self._run(batch[0].images)
        return self._run(np.concatenate([request.images for request in batch]))  # (N, H, W, C)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _order_s(request: QueuedRequest) -> float:
    return request.order_s


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the request was queued")


def _unloaded() -> ModelUnavailable:
    return ModelUnavailable("the version was unloaded while the request was queued")


def _engine_error(error: Exception) -> EngineError | ModelUnavailable:
    if isinstance(error, EngineError | ModelUnavailable):  # ModelUnavailable: from the device server
        return error
    kind = OutOfMemory if is_out_of_memory(error) else EngineError
    wrapped = kind(f"the network failed: {error}")
    wrapped.__cause__ = error
    return wrapped


def _without_frames(error: Exception) -> Exception:
    """Keep the traceback as text: its frames lead to the request, and that leads to this error."""
    error.add_note("".join(traceback.format_exception(error)))
    forget_frames(error)
    return error


def _fail(request: QueuedRequest, error: Exception) -> None:
    if not request.abandoned:
        request.result.set_exception(error)
