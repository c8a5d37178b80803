"""Runs waiting requests in batches. Knows nothing about images' content, ONNX or gRPC.

policy.py decides and touches nothing; `Batcher` waits, dispatches and answers. By default nobody is
waited for: whenever the engine is free it takes what is there, up to the largest batch.
"""

import asyncio
import logging
import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np

from serving.batching.policy import BatchPolicy, Waiting, take_batch
from serving.bundle.images import Pixels
from serving.engine.base import Output
from serving.errors import DeadlineExceeded, EngineError, ModelUnavailable

NO_DEADLINE_S = math.inf

# So many decisions in a row that found one request alone, and the next is run without waiting for the end of
# the event loop's turn; every so many, one does wait, to see whether company comes again.
_ALONE_RUNS = 8

# What a level of priority is worth in waiting. A request of a lower level is overtaken for that long and no
# longer, so that nobody starves.
PRIORITY_STEP_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What one run of the engine was."""

    images: int
    duration_s: float
    queued_s: Sequence[float]  # of each of its requests


class Batcher:
    """The queue of one engine. It decides when the event loop has started all that came in two of its turns.

    A failing batch is run again one request at a time, so that each request fails or succeeds by itself.
    """

    def __init__(
        self,
        run: Callable[[Pixels], Output],
        policy: BatchPolicy,
        on_run: Callable[[BatchRun], None] = lambda _: None,
        *,
        loop_images: int = 0,
    ) -> None:
        """Make an empty queue.

        Args:
            run: the engine.
            policy: how batches are formed.
            on_run: told of every run that succeeded.
            loop_images: the largest batch that is run on the event loop itself, for networks that are
                cheaper than the way to a thread and back; larger ones run in the engine's own thread.
        """
        self.policy = policy
        self._run = run
        self._on_run = on_run
        self._loop_images = loop_images
        self._queue: list[Waiting] = []
        self._alone: deque[Waiting] = deque()  # of a batch that failed: to be run one by one
        self._running: list[Waiting] = []  # in the thread
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._loop: asyncio.AbstractEventLoop
        self._alone_runs = 0  # decisions in a row that found one request
        self._soon = False  # whether a decision is due in this turn of the event loop
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
        for waiting in (*self._running, *self._alone, *self._queue):
            _fail(waiting, _unloaded())

    def submit(
        self, images: Pixels, deadline_s: float = NO_DEADLINE_S, priority: int = 0
    ) -> asyncio.Future[Output]:
        """Wait for a turn and run. To cancel the future is to leave the queue.

        Args:
            images: (n, H, W, C) uint8, 1 <= n <= max_batch_size.
            deadline_s: on the clock of time.monotonic().
            priority: each level above 0 lets those that come up to PRIORITY_STEP_S later go first.

        Raises:
            DeadlineExceeded: the deadline passed in the queue; the network was not run.
            EngineError: the network failed on these images.
            ModelUnavailable: the batcher was left before the answer was there.
        """
        if not 1 <= len(images) <= self.policy.max_batch_size:
            raise ValueError(
                f"{len(images)} images were submitted at once, expected 1 to {self.policy.max_batch_size}. "
                "This is a bug."
            )
        if self._closed:
            raise _unloaded()
        now_s = time.monotonic()
        answer: asyncio.Future[Output] = self._loop.create_future()
        if self._is_alone(len(images)):
            answer.set_result(self._run_now(images, now_s, deadline_s))
            return answer
        waiting = Waiting(images, now_s, deadline_s, answer, now_s + priority * PRIORITY_STEP_S)
        if priority or (self._queue and self._queue[-1].turn_s > waiting.turn_s):
            insort(self._queue, waiting, key=_turn)
        else:
            self._queue.append(waiting)
        if not self._is_held_back():
            self._decide_soon()
        return answer

    def _is_alone(self, images: int) -> bool:
        """Whether to run at once: nobody waits, and nobody has come in company lately."""
        return (
            self._alone_runs >= _ALONE_RUNS
            and self._alone_runs % _ALONE_RUNS != 0
            and images <= self._loop_images
            and not (self._queue or self._alone or self._running)
            and not self.policy.max_queue_delay_s
        )

    def _is_held_back(self) -> bool:
        """Whether a batch waits for company, and what has come does not end that."""
        return (
            self._timer is not None
            and sum(waiting.size for waiting in self._queue) < self.policy.max_batch_size
        )

    def _run_now(self, images: Pixels, now_s: float, deadline_s: float) -> Output:
        self._alone_runs += 1
        if deadline_s <= now_s:
            raise _late()
        try:
            output = self._run(images)
        except (EngineError, ModelUnavailable):
            raise
        except Exception as error:
            raise _engine_error(error) from error
        self._record(BatchRun(len(images), time.monotonic() - now_s, (0.0,)))
        return output

    def _decide_soon(self) -> None:
        if not self._soon and not self._running:
            self._soon = True
            # A turn later than this one: what came while this one's requests were read joins them.
            self._loop.call_soon(self._loop.call_soon, self._decide)

    def _decide(self) -> None:
        self._soon = False
        self._stop_timer()
        if self._closed:
            return
        batch = self._next_batch()
        if not batch:
            return
        if sum(waiting.size for waiting in batch) <= self._loop_images:
            self._run_on_loop(batch)
        else:
            self._run_in_thread(batch)

    def _next_batch(self) -> list[Waiting]:
        while self._alone:
            waiting = self._alone.popleft()
            if not waiting.gone:
                return [waiting]
        decision = take_batch(self._queue, time.monotonic(), self.policy)
        self._queue = decision.rest
        for waiting in decision.late:
            _fail(waiting, _late())
        self._alone_runs = self._alone_runs + 1 if len(decision.batch) == 1 else 0
        if decision.rest and not decision.batch:
            self._timer = self._loop.call_later(decision.wait_s, self._decide_soon)
        return decision.batch

    def _run_on_loop(self, batch: list[Waiting]) -> None:
        started_s = time.monotonic()
        try:
            output = self._run_joined(batch)
        except Exception as error:  # noqa: BLE001 - whatever the engine raises belongs to its requests
            self._fail_or_isolate(batch, error)
        else:
            self._answer(batch, output, started_s)
        self._decide_next()

    def _decide_next(self) -> None:
        """The next batch has to wait for a turn: the answers go out first, and other versions run."""
        if self._queue or self._alone:
            self._decide_soon()

    def _run_in_thread(self, batch: list[Waiting]) -> None:
        try:
            run = self._loop.run_in_executor(self._thread, self._run_joined, batch)
        except RuntimeError as error:  # there can be no more threads
            for waiting in batch:
                _fail(waiting, _engine_error(error))
            self._decide_next()
            return
        self._running = batch
        run.add_done_callback(partial(self._end_run, batch, time.monotonic()))

    def _end_run(self, batch: list[Waiting], started_s: float, run: asyncio.Future[Output]) -> None:
        self._running = []
        error = run.exception()
        if error is None:
            self._answer(batch, run.result(), started_s)
        elif isinstance(error, Exception):
            self._fail_or_isolate(batch, error)
        if not self._closed:
            self._decide()

    def _answer(self, batch: Sequence[Waiting], output: Output, started_s: float) -> None:
        at = 0
        for waiting in batch:
            if not waiting.gone:
                waiting.answer.set_result(output if len(batch) == 1 else output[at : at + waiting.size])
            at += waiting.size
        queued_s = [started_s - waiting.arrived_s for waiting in batch]
        self._record(BatchRun(at, time.monotonic() - started_s, queued_s))

    def _record(self, run: BatchRun) -> None:
        try:
            self._on_run(run)
        except Exception as error:  # noqa: BLE001 - what waits is served all the same
            _log.error("run_not_recorded", exc_info=error)

    def _fail_or_isolate(self, batch: list[Waiting], error: Exception) -> None:
        if len(batch) == 1:
            _fail(batch[0], _engine_error(error))
        else:
            self._alone.extend(batch)

    def _run_joined(self, batch: Sequence[Waiting]) -> Output:
        if len(batch) == 1:
            return self._run(batch[0].images)
        return self._run(np.concatenate([waiting.images for waiting in batch]))  # (N, H, W, C)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _turn(waiting: Waiting) -> float:
    return waiting.turn_s


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the request waited for the network")


def _unloaded() -> ModelUnavailable:
    return ModelUnavailable("the version was unloaded while the request waited")


def _engine_error(error: Exception) -> EngineError | ModelUnavailable:
    if isinstance(error, EngineError | ModelUnavailable):  # the latter: the process that runs it is gone
        return error
    wrapped = EngineError(f"the network failed: {error}")
    wrapped.__cause__ = error
    return wrapped


def _fail(waiting: Waiting, error: Exception) -> None:
    if not waiting.gone:
        waiting.answer.set_exception(error)
