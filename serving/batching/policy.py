"""Which waiting requests run now, as a pure function of the queue, the time and the policy."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.bundle.images import Pixels
from serving.engine.base import Output


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How batches are formed."""

    max_batch_size: int
    max_queue_delay_s: float = 0.0  # how long a batch that could grow is held back


@dataclass(slots=True, eq=False)
class Waiting:
    """One request in the queue. Times are those of one monotonic clock."""

    images: Pixels  # (n, H, W, C) uint8, n <= max_batch_size
    arrived_s: float
    deadline_s: float
    answer: asyncio.Future[Output]
    turn_s: float  # the queue is in this order: arrival, made later by a lower priority
    size: int = field(init=False)  # number of images

    def __post_init__(self) -> None:
        """Count once: it is asked for again and again."""
        self.size = len(self.images)

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.answer.done()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a queue now. Entries that were looked at and are in none of the lists are gone."""

    batch: list[Waiting]
    late: list[Waiting]
    rest: list[Waiting]
    wait_s: float = 0.0  # with an empty batch: when to decide again, at the latest


def take_batch(queue: Sequence[Waiting], now_s: float, policy: BatchPolicy) -> Decision:
    """Decide which requests run now.

    1. From the head of the queue, those whose callers have gone are forgotten and those past their deadline
       are late.
    2. The others are taken in order while they fit; the first that does not fit ends the batch, so that a
       large request is never overtaken for ever. What stands behind it is not looked at.
    3. A batch that could still grow waits until its oldest request has waited max_queue_delay_s.
    """
    batch: list[Waiting] = []
    late: list[Waiting] = []
    total = seen = 0
    for waiting in queue:
        if waiting.gone:
            pass
        elif waiting.deadline_s <= now_s:
            late.append(waiting)
        elif total + waiting.size > policy.max_batch_size:
            break
        else:
            batch.append(waiting)
            total += waiting.size
        seen += 1
    rest = list(queue[seen:])
    if not batch or rest or total == policy.max_batch_size or not policy.max_queue_delay_s:
        return Decision(batch, late, rest)
    wait_s = min(waiting.arrived_s for waiting in batch) + policy.max_queue_delay_s - now_s
    if wait_s <= 0:
        return Decision(batch, late, rest)
    return Decision([], late, batch, wait_s)
