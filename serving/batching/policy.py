"""Which queued requests run now: a pure function of the queue, the time and the policy."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from serving.bundle.images import Pixels
from serving.engine.base import Output


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed."""

    max_batch_size: int
    max_queue_delay_s: float = 0.0  # how long an idle engine waits for a fuller batch


class QueuedRequest:
    """One request in the queue. All times are on the same monotonic clock."""

    __slots__ = ("arrived_s", "deadline_s", "images", "order_s", "result", "size")

    def __init__(
        self,
        images: Pixels,
        arrived_s: float,
        deadline_s: float,
        result: asyncio.Future[Output],
        order_s: float,
    ) -> None:
        """Store a request.

        Args:
            images: (n, H, W, C) uint8, n <= max_batch_size.
            arrived_s: when it was queued.
            deadline_s: when it expires.
            result: of its images.
            order_s: sort key of the queue: arrival time, plus a delay for lower priorities.
        """
        self.images = images
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.result = result
        self.order_s = order_s
        self.size = len(images)  # every decision needs it

    @property
    def abandoned(self) -> bool:
        """Whether the caller has stopped waiting."""
        return self.result.done()


@dataclass(slots=True)  # not frozen: creation would take several times as long
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
        if request.result.done():  # abandoned
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
