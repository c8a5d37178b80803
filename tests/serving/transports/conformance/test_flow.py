"""Concurrency on one connection, large streams, and flow control for slow clients and servers."""

import asyncio

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from tests.serving.transports.conformance.methods import Channels, Methods
from tests.serving.transports.conformance.served import Served

MESSAGES, SIZE = 2000, 2**16  # 125 MiB in all
MOST_BUFFERED_BYTES = 24 * 2**20  # in the windows and queues of both sides
OTHER_CALLS = 300  # meanwhile a sender without flow control would have sent everything


async def test_a_slow_client_slows_the_server_down(served: Served, channels: Channels) -> None:
    """Answers are not produced ahead of a slow reader; other connections are served; none is lost."""
    call = channels(served).server_stream("Count")(StringValue(value=f"{MESSAGES} {SIZE}"))
    assert (await call.read()).value[:4] == bytes(4)
    await _other_calls(channels(served))
    assert served.echo.produced * SIZE < MOST_BUFFERED_BYTES
    for number in range(1, MESSAGES):
        assert (await call.read()).value[:4] == number.to_bytes(4, "big")
    assert await call.read() is grpc.aio.EOF


async def test_a_slow_server_slows_its_client_down(served: Served, channels: Channels) -> None:
    """Messages are not sent ahead of the function; all arrive when it reads."""
    call = channels(served).client_stream("Sum", Int64Value)()
    written = 0

    async def write_all() -> None:
        nonlocal written
        for _ in range(MESSAGES):
            await call.write(BytesValue(value=bytes(SIZE)))
            written += 1
        await call.done_writing()

    writing = asyncio.create_task(write_all())
    await asyncio.wait_for(served.echo.begun.acquire(), 10)
    await _other_calls(channels(served))
    assert written * SIZE < MOST_BUFFERED_BYTES
    assert served.echo.taken == 0
    served.echo.may_end.set()
    await writing
    assert (await call).value == MESSAGES * SIZE


async def test_large_streams_run_side_by_side(served: Served, channels: Channels) -> None:
    """Eight streams of 16 messages of half a megabyte on one connection, each in order."""
    each = channels(served).stream("Each")

    async def converse(letter: int) -> None:
        call = each()
        for number in range(16):
            message = bytes([letter, number]) * 2**18
            await call.write(BytesValue(value=message))
            assert (await call.read()).value == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF

    await asyncio.gather(*(converse(letter) for letter in range(8)))


async def test_1000_streams_are_open_on_one_connection(served: Served, channels: Channels) -> None:
    """All are open at the same time, and all succeed."""
    each = channels(served).stream("Each")
    calls = [each() for _ in range(1000)]
    for number, call in enumerate(calls):
        await call.write(BytesValue(value=b"%d" % number))
    answers = await asyncio.gather(*(call.read() for call in calls))
    assert [answer.value for answer in answers] == [b"%d" % number for number in range(1000)]
    for call in calls:
        await call.done_writing()
    codes = await asyncio.gather(*(call.code() for call in calls))
    assert set(codes) == {grpc.StatusCode.OK}


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000])
async def test_1000_calls_at_once_each_get_their_own_answer(
    served: Served, channels: Channels, size: int
) -> None:
    """Also with messages as long as a frame or a window; fewer of them."""
    say = channels(served).unary("Say")
    messages = [
        BytesValue(value=number.to_bytes(4, "big") + bytes(size))
        for number in range(1000 if size < 2 else 60)
    ]
    assert await asyncio.gather(*(say(message) for message in messages)) == messages


async def _other_calls(methods: Methods) -> None:
    for _ in range(OTHER_CALLS):
        await methods.unary("Say")(BytesValue(value=b"1"))
