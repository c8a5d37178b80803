"""The messages of a stream that its handler holds: they bound how far the client may be ahead."""

import asyncio
from collections import deque

from serving.transports.http.asgi import RequestBody


class UnansweredMessages:
    """The messages of a stream that the handler holds. The others are released, as streams may be long."""

    def __init__(self, body: RequestBody, max_bytes: int, *, answers_each: bool) -> None:
        """Start without messages.

        Args:
            body: the request that is charged.
            max_bytes: while more are unanswered, no further message is received.
            answers_each: whether every message has one answer, in order; otherwise the handler holds a
                message until it takes the next one.
        """
        self.body = body
        self._answers_each = answers_each
        self._max_bytes = max_bytes
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.is_full = False  # nothing more may be received now
        self._answered = asyncio.Event()
        body.may_pause = True

    def add(self, size: int) -> None:
        """Add a message."""
        self._sizes.append(size)
        self._bytes += size
        self.is_full = self._bytes > self._max_bytes

    def taken(self) -> None:
        """The handler takes the next message."""
        if not self._answers_each:
            self._release(1)

    def answered(self, count: int) -> None:
        """That many answers have been sent."""
        if self._answers_each:
            self._release(count)

    def _release(self, count: int) -> None:
        size = sum([self._sizes.popleft() for _ in range(min(count, len(self._sizes)))])
        self._bytes -= size
        self.is_full = self._bytes > self._max_bytes
        self.body.release(size)
        self._answered.set()

    async def room(self) -> None:
        """Wait while it is full."""
        while self.is_full:
            self._answered.clear()
            await self._answered.wait()
