"""Answers a stream of requests in their order, several at a time. Knows no message and no RPC."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from serving.errors import DeadlineExceeded

Request = TypeVar("Request")
Response = TypeVar("Response")


async def pipelined(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    *,
    max_in_flight: int,
    deadline_s: float = math.inf,
) -> AsyncGenerator[Response, None]:
    """Give the answers to requests, in order.

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
    making: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()
    places = asyncio.Semaphore(max_in_flight)
    reader = asyncio.create_task(_read(requests, answer, making, places))
    alarm = None
    if not math.isinf(deadline_s):
        alarm = asyncio.get_running_loop().call_at(deadline_s, lambda: making.put_nowait(_late()))
    try:
        while (response := await making.get()) is not None:
            yield await response
            places.release()
        await reader  # raises what reading raised
    finally:
        if alarm is not None:
            alarm.cancel()
        await _cancel([reader])
        await _cancel([each for each in _drained(making) if each is not None])


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    making: asyncio.Queue[asyncio.Future[Response] | None],
    places: asyncio.Semaphore,
) -> None:
    try:
        await places.acquire()
        async for request in requests:
            making.put_nowait(asyncio.create_task(answer(request)))
            await places.acquire()
    finally:
        making.put_nowait(None)


def _late() -> "asyncio.Future[Any]":
    late = asyncio.get_running_loop().create_future()
    late.set_exception(DeadlineExceeded("the deadline passed before the stream had ended"))
    return late


def _drained(making: asyncio.Queue[asyncio.Future[Response] | None]) -> list[asyncio.Future[Response] | None]:
    return [making.get_nowait() for _ in range(making.qsize())]


async def _cancel(futures: "list[asyncio.Future[Any]]") -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)
