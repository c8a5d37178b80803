"""Answers a stream of requests in their order, several at a time. Knows no message and no RPC."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from serving.errors import DeadlineExceeded

Request = TypeVar("Request")
Response = TypeVar("Response")


async def pipelined(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    *,
    max_in_flight: int,
    deadline_s: float = math.inf,
) -> AsyncGenerator[list[Response], None]:
    """Give the answers to requests, in order, as many at once as are ready: sending them together is cheaper.

    While max_in_flight requests have no answer yet, or one that nobody has taken, no further one is read: a
    client that sends faster than it reads is stopped by the transport's flow control. Leaving early (aclose,
    or a caller that is cancelled) cancels reading and all answers that are being made.

    Args:
        requests: read ahead of the answers. An error while reading comes after the answers to what was read.
        answer: runs for several requests at once. An error that it raises ends the stream at its turn; who
            wants the stream to go on makes it an answer.
        max_in_flight: at least 1.
        deadline_s: on the clock of time.monotonic(). The answers have to keep it themselves.

    Raises:
        DeadlineExceeded: it passed before the stream had ended.
    """
    line: _Line[Response] = _Line()
    places = asyncio.Semaphore(max_in_flight)
    reader = asyncio.create_task(_read(requests, answer, line, places))
    reader.add_done_callback(lambda _: line.arrived.set())
    alarm = None
    if not math.isinf(deadline_s):
        alarm = asyncio.get_running_loop().call_at(deadline_s, lambda: line.append(_late()))
    try:
        while await line.wait(reader):
            answers = await line.take()
            yield answers
            for _ in answers:
                places.release()
        await reader  # raises what reading raised
    finally:
        if alarm is not None:
            alarm.cancel()
        await _cancel(reader, *line.making)


class _Line(Generic[Response]):
    """Answers that are being made, in order, and a way to wait for more of them."""

    def __init__(self) -> None:
        self.making: deque[asyncio.Future[Response]] = deque()
        self.arrived = asyncio.Event()

    def append(self, response: asyncio.Future[Response]) -> None:
        """One more at the end."""
        self.making.append(response)
        self.arrived.set()

    async def wait(self, reader: asyncio.Task[None]) -> bool:
        """Whether there is one, or none will ever be."""
        while not self.making:
            if reader.done():
                return False
            self.arrived.clear()
            await self.arrived.wait()
        return True

    async def take(self) -> list[Response]:
        """The first, once it is ready, with all behind it that are ready too. Of errors only the first's."""
        answers = [await self.making[0]]
        self.making.popleft()
        while self.making and _succeeded(self.making[0]):
            answers.append(self.making.popleft().result())
        return answers


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    line: _Line[Response],
    places: asyncio.Semaphore,
) -> None:
    await places.acquire()
    async for request in requests:
        line.append(asyncio.create_task(answer(request)))
        await places.acquire()


def _succeeded(response: asyncio.Future[Any]) -> bool:
    return response.done() and not response.cancelled() and response.exception() is None


def _late() -> asyncio.Future[Any]:
    late = asyncio.get_running_loop().create_future()
    late.set_exception(DeadlineExceeded("the deadline passed before the stream had ended"))
    return late


async def _cancel(*futures: asyncio.Future[Any]) -> None:
    # All before any is waited for: who waits here may be cancelled once more.
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
