"""Groups waiting requests into batches. Knows nothing about images' content, ONNX or gRPC.

`take_batch` decides and touches nothing; `Batcher` waits, dispatches and answers. By default nobody is waited
for: whenever the engine is free it takes what is there, up to the largest batch, oldest first.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from serving.bundle.images import Pixels
from serving.engine import Output
from serving.errors import DeadlineExceeded, EngineError, ModelUnavailable

NO_DEADLINE_S = math.inf


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed."""

    max_batch_size: int
    max_queue_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A request's part of a batch."""

    output: Output
    queue_s: float


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What one run of the engine was."""

    images: int
    duration_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One request in the queue. Times are those of one monotonic clock."""

    images: Pixels  # (n, H, W, C) uint8, n <= max_batch_size
    arrived_s: float
    deadline_s: float
    answer: asyncio.Future[Answer]

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.answer.done()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a queue now: every entry that is still wanted is in exactly one of the three lists."""

    batch: list[Waiting]
    late: list[Waiting]
    rest: list[Waiting]
    wait_s: float = 0.0  # with an empty batch: when to decide again, at the latest


def take_batch(queue: Sequence[Waiting], now_s: float, policy: BatchPolicy) -> Decision:
    """Decide which requests run now.

    1. Requests whose callers have gone are forgotten, those past their deadline are late.
    2. The oldest others are taken in order while they fit; the first that does not fit ends the batch, so
       that a large request is never overtaken for ever.
    3. A batch that could still grow waits until its oldest request has waited max_queue_delay_s.
    """
    wanted = [waiting for waiting in queue if not waiting.gone]
    late = [waiting for waiting in wanted if waiting.deadline_s <= now_s]
    alive = [waiting for waiting in wanted if waiting.deadline_s > now_s]
    total, taken = 0, 0
    for waiting in alive:
        if total + waiting.size > policy.max_batch_size:
            break
        total, taken = total + waiting.size, taken + 1
    can_grow = taken == len(alive) and total < policy.max_batch_size
    if alive and can_grow:
        wait_s = alive[0].arrived_s + policy.max_queue_delay_s - now_s
        if wait_s > 0:
            return Decision([], late, alive, wait_s)
    return Decision(alive[:taken], late, alive[taken:])


class Batcher:
    """The queue of one engine, and the one thread that runs it.

    A failing batch is run again one request at a time, so that each request fails or succeeds by itself.
    """

    def __init__(
        self,
        run: Callable[[Pixels], Output],
        policy: BatchPolicy,
        on_run: Callable[[BatchRun], None] = lambda _: None,
    ) -> None:
        self.policy = policy
        self._run = run
        self._on_run = on_run
        self._queue: list[Waiting] = []
        self._running: list[Waiting] = []
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._dispatch(), name="batcher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._thread.shutdown(wait=False)
        for waiting in (*self._running, *self._queue):
            _fail(waiting, _unloaded())
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def submit(self, images: Pixels, deadline_s: float = NO_DEADLINE_S) -> Answer:
        """Wait for a turn and run.

        Args:
            images: (n, H, W, C) uint8, 1 <= n <= max_batch_size.
            deadline_s: on the clock of time.monotonic().

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
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(images, time.monotonic(), deadline_s, answer))
        self._arrival.set()
        return await answer

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            decision = take_batch(self._queue, time.monotonic(), self.policy)
            self._queue = decision.rest
            for waiting in decision.late:
                _fail(
                    waiting, DeadlineExceeded("the deadline passed while the request waited for the network")
                )
            self._running = decision.batch
            if decision.batch:
                await self._run_batch(decision.batch)
            elif decision.rest:
                await self._wait_for_more(decision.wait_s)
            else:
                self._arrival.clear()

    async def _wait_for_more(self, wait_s: float) -> None:
        self._arrival.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._arrival.wait()
        except TimeoutError:
            self._arrival.set()

    async def _run_batch(self, batch: list[Waiting]) -> None:
        started_s = time.monotonic()
        try:
            output = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_joined, batch)
        except Exception as error:  # noqa: BLE001 - whatever the engine raises belongs to its requests, not to the loop
            if len(batch) == 1:
                _fail(batch[0], _engine_error(error))
                return
            for waiting in batch:
                if not waiting.gone:
                    await self._run_batch([waiting])
            return
        self._on_run(BatchRun(sum(waiting.size for waiting in batch), time.monotonic() - started_s))
        at = 0
        for waiting in batch:
            if not waiting.gone:
                waiting.answer.set_result(
                    Answer(output[at : at + waiting.size], started_s - waiting.arrived_s)
                )
            at += waiting.size

    def _run_joined(self, batch: Sequence[Waiting]) -> Output:
        """Copying megabytes of pixels is work for the engine's thread, not for the event loop."""
        if len(batch) == 1:
            return self._run(batch[0].images)
        return self._run(np.concatenate([waiting.images for waiting in batch]))  # (N, H, W, C)


def _unloaded() -> ModelUnavailable:
    return ModelUnavailable("the version was unloaded while the request waited")


def _engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    wrapped = EngineError(f"the network failed: {error}")
    wrapped.__cause__ = error
    return wrapped


def _fail(waiting: Waiting, error: Exception) -> None:
    if not waiting.gone:
        waiting.answer.set_exception(error)
