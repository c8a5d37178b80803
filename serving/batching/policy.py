"""Which queued requests run now: a pure function of the queue, the time and the policy."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.bundle.images import Pixels
from serving.engine.base import Output


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed."""

    max_batch_size: int
    max_queue_delay_s: float = 0.0  # how long an idle engine waits for a fuller batch


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """One request in the queue. All times are on the same monotonic clock."""

    images: Pixels  # (n, H, W, C) uint8, n <= max_batch_size
    arrived_s: float
    deadline_s: float
    result: asyncio.Future[Output]
    order_s: float  # sort key of the queue: arrival time, plus a delay for lower priorities
    size: int = field(init=False)  # number of images

    def __post_init__(self) -> None:
        """Cache the number of images: every decision needs it."""
        self.size = len(self.images)

    @property
    def abandoned(self) -> bool:
        """Whether the caller has stopped waiting."""
        return self.result.done()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the queue now. Neither list contains the abandoned requests at its head."""

    batch: list[QueuedRequest]
    expired: list[QueuedRequest]
    rest: list[QueuedRequest]
    wait_s: float = 0.0  # if the batch is empty: when to decide again, at the latest


def take_batch(queue: Sequence[QueuedRequest], now_s: float, policy: BatchPolicy) -> Decision:
    """Decide which requests run now.

    1. At the head of the queue, abandoned requests are dropped, and requests past their deadline expire.
    2. The other requests join the batch in order while they fit. The first that does not fit ends the batch,
       so that small requests do not starve a large one.
    3. A batch that could still grow waits until its oldest request has waited max_queue_delay_s.
    """
    batch: list[QueuedRequest] = []
    expired: list[QueuedRequest] = []
    total = seen = 0
    for request in queue:
        if request.abandoned:
            pass
        elif request.deadline_s <= now_s:
            expired.append(request)
        elif total + request.size > policy.max_batch_size:
            break
        else:
            batch.append(request)
            total += request.size
        seen += 1
    rest = list(queue[seen:])
    if not batch or rest or total == policy.max_batch_size or not policy.max_queue_delay_s:
        return Decision(batch, expired, rest)
    wait_s = min(request.arrived_s for request in batch) + policy.max_queue_delay_s - now_s
    if wait_s <= 0:
        return Decision(batch, expired, rest)
    return Decision([], expired, batch, wait_s)
