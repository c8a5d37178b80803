"""Admission control: limits the pending images and their waiting time. Independent of what is done with them.

What cannot be answered in time is refused at once. Otherwise a server that is asked for more than it can do
spends its time on images whose callers have given up.
"""

import asyncio
import math
import time
from collections.abc import Callable

from serving.batching.backlog import Backlog
from serving.classify.preprocessing import Preprocessor
from serving.errors import Overloaded

DEFAULT_MAX_QUEUE_S = 1.0

# A shorter queue is not worth a look at the clock.
_NEGLIGIBLE_S = 1e-3
# Estimates are wrong by up to these factors where the load changes, or other processes take the core. A queue
# with a full batch keeps the server as busy as a longer one, so that only those before it take a risk.
_MARGIN = 1.5
_MARGIN_BEYOND_A_BATCH = 2.0
# Streams fill this share of a queue, and leave the rest to calls, which are refused if it is full. They get
# at least every fourth place that becomes free, so that calls do not starve them.
_SHARE_OF_STREAMS = 0.25
_LEAST_TURNS_OF_STREAMS = 4
# The last eighth of the places is for versions that hold fewer: one that is overloaded leaves room for
# others. It is reserved for this time after the last request for another version than the one before it.
_RESERVED_PART = 8
_RESERVED_S = 10.0
_LEAST_RETRY_S = 0.1


class Admission:
    """Counts pending images, and refuses at once those above the limit and those that would be late."""

    def __init__(
        self,
        limit: int,
        preprocessor: Preprocessor,
        *,
        max_queue_s: float = DEFAULT_MAX_QUEUE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without images.

        Args:
            limit: of the pending images of all versions.
            preprocessor: estimates how long images wait to be decoded.
            max_queue_s: the longest time that an image may wait for those before it.
            clock: seconds; that of deadlines and of the backlogs.
        """
        self.limit = limit
        self.pending = 0
        self._preprocessor = preprocessor
        self._decode_wait_s = preprocessor.wait_s
        self._max_queue_s = max_queue_s
        self._queue_of_streams_s = _SHARE_OF_STREAMS * max_queue_s
        self._clock = clock
        self._reserve = limit // _RESERVED_PART
        self._latest: Backlog | None = None  # of the version of the latest request
        self._reserved_until_s = -math.inf

    def check(self) -> None:
        """Check for at least one free place. It is cheapest to reject a request before it is read.

        Raises:
            Overloaded: the limit is reached.
        """
        if self.pending >= self.limit:
            raise _overloaded(f"{self.pending} images are pending, the limit is {self.limit}")

    def check_wait(self, backlog: Backlog, deadline_s: float = math.inf) -> None:
        """Check, before the images of a request have arrived, whether a single one would be answered in time.

        Args:
            backlog: of its version.
            deadline_s: as in `enter`.

        Raises:
            Overloaded: it would wait too long.
        """
        if backlog.images:
            self._check_time(1, backlog, deadline_s)

    def enter(self, images: int, backlog: Backlog, deadline_s: float = math.inf) -> None:
        """Reserve places for images until `leave`.

        Args:
            images: of one request.
            backlog: of its version.
            deadline_s: on the clock of time.monotonic().

        Raises:
            Overloaded: the images would exceed the limit, or would wait too long.
        """
        if backlog is not self._latest:
            if self._latest is not None:
                self._reserved_until_s = self._clock() + _RESERVED_S
            self._latest = backlog
        if self.pending + images > self.limit - self._reserve:
            self._check_places(images, backlog)
        if backlog.images:
            at_most_s = backlog.start_s + backlog.images * (backlog.start_s + backlog.run_s)
            if at_most_s > _NEGLIGIBLE_S or self._decode_wait_s(backlog) > _NEGLIGIBLE_S:
                self._check_time(images, backlog, deadline_s)
        self.pending += images
        backlog.images += images

    def leave(self, images: int, backlog: Backlog) -> None:
        """Release the places of images."""
        self.pending -= images
        backlog.images -= images
        if backlog.waiting:
            self._wake(backlog)

    def is_long(self, backlog: Backlog) -> bool:
        """Whether requests of streams should wait for their turn."""
        if not backlog.running_images:
            # Saves 0.5 us of the 25 us of a LeNet-5 image in a stream: no look at the clock.
            at_most_s = backlog.start_s + backlog.images * (backlog.start_s + backlog.run_s)
            if at_most_s <= self._queue_of_streams_s:
                return self._decode_wait_s(backlog) > self._queue_of_streams_s
        return self._wait_s(backlog) > self._queue_of_streams_s

    def is_full(self, backlog: Backlog) -> bool:
        """Whether a request would be refused now, because its images would wait too long."""
        return self._wait_s(backlog) > self._max_queue_s

    async def turn(self, backlog: Backlog) -> bool:
        """Wait, after `is_long`, until a request of a stream may enter: it is not refused, but delayed.

        Returns: whether it is its turn. If not, the queue is empty now, and may be long again.
        """
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        backlog.waiting.append(turn)
        return await turn

    def _wake(self, backlog: Backlog) -> None:
        backlog.passed_over += 1
        if backlog.images and backlog.passed_over < _LEAST_TURNS_OF_STREAMS and self.is_long(backlog):
            return
        backlog.passed_over = 0
        while backlog.waiting:
            turn = backlog.waiting.popleft()
            if not turn.done():
                turn.set_result(backlog.images > 0)
                if backlog.images:  # otherwise nothing will leave, and wake the next one
                    return

    def _wait_s(self, backlog: Backlog) -> float:
        """Estimate how long an image would wait: as decoding feeds the network, for the slower of both."""
        return max(backlog.wait_s(self._clock()), self._decode_wait_s(backlog))

    def _check_places(self, images: int, backlog: Backlog) -> None:
        reserve = 0
        if backlog.images + images > self._reserve and self._clock() < self._reserved_until_s:
            reserve = self._reserve
        if self.pending + images > self.limit - reserve:
            others = f", of which {reserve} are for other models" if reserve else ""
            raise _overloaded(
                f"{self.pending} images are pending, {images} more would exceed the limit of "
                f"{self.limit}{others}",
                self._wait_s(backlog),
            )

    def _check_time(self, images: int, backlog: Backlog, deadline_s: float) -> None:
        wait_s = self._wait_s(backlog)
        if wait_s > self._max_queue_s:
            limit = f"the limit is {self._max_queue_s:g} s"
        elif deadline_s == math.inf:
            return
        else:
            left_s = deadline_s - self._clock()
            own_s = backlog.batch_s(images) + self._preprocessor.duration_s(images, backlog)
            if backlog.queued < backlog.max_batch_size:
                at_most_s = _MARGIN * wait_s + own_s
            else:
                at_most_s = _MARGIN_BEYOND_A_BATCH * (wait_s + own_s)
            if at_most_s <= left_s:
                return
            limit = f"the call has {max(left_s, 0.0):.2f} s left"
        queue = f"{backlog.images} images of this model are pending, and a new one would wait {wait_s:.2f} s"
        raise _overloaded(f"{queue}; {limit}", wait_s)


def _overloaded(reason: str, retry_s: float = 0.0) -> Overloaded:
    return Overloaded(f"{reason}: retry later", max(retry_s, _LEAST_RETRY_S))
