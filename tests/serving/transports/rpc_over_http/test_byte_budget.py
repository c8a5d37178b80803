"""Requests that hold too many bytes are refused with a status; their connection and other calls live."""

import asyncio
import gzip
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, SettingsFrame

from serving.metrics.recorder import Metrics
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Pipeline, Stream, Unary
from serving.rpc.status import Status
from serving.transports.http.byte_budget import REQUEST_BYTES
from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.limits import Limits
from serving.transports.rpc_over_http.server import H2Server
from tests.serving.transports.raw_connection import RawConnection

BUDGET_BYTES = 2**20
MESSAGE_BYTES = 2**19
PART_BYTES = 2**17

Answer = Callable[[BytesValue, Call], Awaitable[BytesValue]]


async def _echo(request: BytesValue, _call: Call) -> BytesValue:
    return request


async def _short(_request: BytesValue, _call: Call) -> BytesValue:
    return BytesValue(value=b"short")


async def _long(_request: BytesValue, _call: Call) -> BytesValue:
    return BytesValue(value=bytes(PART_BYTES))


async def _each(requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[BytesValue]:
    async for request in requests:
        yield request


def _server(answer: Answer = _echo, budget_bytes: int = BUDGET_BYTES) -> H2Server:
    middleware = Middleware(Metrics())

    def refuse(_request: BytesValue, status: Status) -> BytesValue:
        return BytesValue(value=status.message.encode())

    rows = (
        Unary("/tests.Echo/Say", BytesValue, answer),
        Unary("/tests.Echo/Long", BytesValue, _long),
        Stream("/tests.Echo/Each", BytesValue, _each),
        Pipeline("/tests.Echo/InOrder", BytesValue, answer, refuse, "value"),
    )
    return H2Server(
        [middleware.wrap(row) for row in rows],
        host="127.0.0.1",
        port=0,
        max_message_bytes=MESSAGE_BYTES,
        limits=Limits(max_pending_bytes=budget_bytes),
    )


@asynccontextmanager
async def _client(server: H2Server) -> AsyncIterator[RawConnection]:
    """A client that knows the server's windows."""
    async with RawConnection(server.port) as client:
        await client.read_until(
            lambda: (
                min(client.h2.outbound_flow_control_window, client.h2.remote_settings.initial_window_size)
                > 2**16
            )
        )
        yield client


def _message(size: int, *, announced: int | None = None) -> bytes:
    """A message of gRPC with that many bytes in its only field."""
    data = BytesValue(value=bytes(size)).SerializeToString()
    return struct.pack(">BI", 0, announced or len(data)) + data


def _half(size: int = PART_BYTES) -> bytes:
    """A part of a message whose rest never comes."""
    return _message(size, announced=MESSAGE_BYTES)


async def _is_free(server: H2Server) -> None:
    async with asyncio.timeout(10):
        while server.pending_bytes:  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0)


async def test_half_sent_bodies_on_many_streams_are_refused_and_others_live() -> None:
    """One connection could hold 64 MiB on each of 1024 streams. The rest of it and other clients go on."""
    async with _server() as server:
        async with _client(server) as attacker, _client(server) as other:
            streams = [await attacker.open("Say") for _ in range(6)]
            for stream in streams:
                await attacker.send(stream, _half())
            reply = await attacker.reply(streams[-1])
            assert reply.code == "RESOURCE_EXHAUSTED"
            assert f"of {BUDGET_BYTES} (--max-pending-bytes)" in reply.headers["grpc-message"]
            assert not attacker.replies[streams[0]].has_ended
            assert server.pending_bytes < BUDGET_BYTES
            assert (await other.call("Say", _message(PART_BYTES))).code == "OK"
            assert (await attacker.call("Say", _message(100))).code == "OK"
        await _is_free(server)


async def test_a_client_over_the_budget_keeps_its_connection() -> None:
    """Large calls of a real client, at once: some are refused, none loses its connection."""
    message = BytesValue(value=bytes(MESSAGE_BYTES - 100)).SerializeToString()
    async with (
        _server(budget_bytes=8 * BUDGET_BYTES) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        say = channel.unary_unary("/tests.Echo/Say")
        codes: Counter[grpc.StatusCode] = Counter()

        async def call() -> None:
            try:
                await say(message, timeout=30)
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
            else:
                codes[grpc.StatusCode.OK] += 1

        for _ in range(2):
            await asyncio.gather(*(call() for _ in range(64)))
        assert await say(message, timeout=30)
        await _is_free(server)
    assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_many_connections_leave_room_for_one_more() -> None:
    """Each holds less than its share; a small call of a newcomer is answered all the same."""
    async with AsyncExitStack() as stack, _server() as server:
        for _ in range(20):
            attacker = await stack.enter_async_context(_client(server))
            stream = await attacker.open("Say")
            for _ in range(MESSAGE_BYTES // 2**12):
                if attacker.replies[stream].has_ended:
                    break
                await attacker.send(stream, _half(2**11))
                await asyncio.sleep(0)
        assert server.pending_bytes <= BUDGET_BYTES
        newcomer = await stack.enter_async_context(_client(server))
        assert (await newcomer.call("Say", _message(1000))).code == "OK"


async def test_bytes_that_the_application_has_received_count_until_the_answer() -> None:
    """Whole messages that wait for their answers are bytes in flight too."""
    may_end = asyncio.Event()

    async def wait(request: BytesValue, _call: Call) -> BytesValue:
        await may_end.wait()
        return request

    async with _server(wait) as server, _client(server) as client:
        streams = [await client.open("Say") for _ in range(5)]
        for stream in streams:
            await client.send(stream, _message(PART_BYTES), end=True)
        refused = await client.reply(streams[-1])
        assert refused.code == "RESOURCE_EXHAUSTED"
        may_end.set()
        assert [(await client.reply(each)).code for each in streams[:3]] == ["OK"] * 3
        await client.reply(streams[3])
        await _is_free(server)
        assert (await client.call("Say", _message(PART_BYTES))).code == "OK"


@pytest.mark.parametrize("how", ["reset", "disconnect"])
async def test_a_call_that_the_client_gives_up_is_released(how: str) -> None:
    """RST_STREAM, or the end of the connection."""
    async with _server() as server, _client(server) as client:
        stream = await client.open("Say")
        await client.send(stream, _half())
        async with asyncio.timeout(10):
            while server.pending_bytes < PART_BYTES:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)
        if how == "reset":
            client.h2.reset_stream(stream)
            await client.flush()
        else:
            client.drop()
        await _is_free(server)


@pytest.mark.parametrize("method", ["Each", "InOrder"])
async def test_a_long_stream_may_carry_more_than_the_budget(method: str) -> None:
    """What is answered is released: eight times the budget passes through one call."""
    async with _server() as server, _client(server) as client:
        stream = await client.open(method)
        message = _message(PART_BYTES)
        reply = client.replies[stream]
        for count in range(1, 8 * BUDGET_BYTES // PART_BYTES + 1):
            await client.send(stream, message)
            await client.read_until(lambda count=count: len(reply.body) >= count * len(message))  # type: ignore[misc]
        assert server.pending_bytes < 3 * PART_BYTES
        client.h2.end_stream(stream)
        await client.flush()
        assert (await client.reply(stream)).code == "OK"


@pytest.mark.parametrize("method", ["Each", "InOrder"])
async def test_compressed_messages_count_with_their_decompressed_size(method: str) -> None:
    """Eight times the budget passes through one stream, message by message; each is released."""
    zipped = gzip.compress(BytesValue(value=bytes(PART_BYTES)).SerializeToString())
    framed = struct.pack(">BI", 1, len(zipped)) + zipped
    count = 8 * BUDGET_BYTES // PART_BYTES
    async with _server() as server, _client(server) as client:
        reply = await client.call(method, framed * count, ("grpc-encoding", "gzip"))
        assert reply.code == "OK"
        assert len(reply.body) == count * len(_message(PART_BYTES))
        await _is_free(server)


async def test_compressed_messages_that_grow_over_the_budget_are_refused() -> None:
    """Four calls of 400 bytes become 256 KiB each: at most one has room, the others are refused."""
    may_end = asyncio.Event()

    async def wait(request: BytesValue, _call: Call) -> BytesValue:
        await may_end.wait()
        return request

    zipped = gzip.compress(BytesValue(value=bytes(MESSAGE_BYTES // 2)).SerializeToString())
    framed = struct.pack(">BI", 1, len(zipped)) + zipped
    async with _server(wait) as server, _client(server) as client:
        streams = [await client.open("Say", ("grpc-encoding", "gzip")) for _ in range(4)]
        for stream in streams:
            await client.send(stream, framed, end=True)
        replies = [client.replies[stream] for stream in streams]
        await client.read_until(lambda: sum(reply.has_ended for reply in replies) >= 3)
        may_end.set()
        for stream in streams:
            await client.reply(stream)
        assert sorted(reply.code for reply in replies)[1:] == ["RESOURCE_EXHAUSTED"] * 3
        await _is_free(server)


async def test_a_stream_whose_messages_wait_is_not_read_further() -> None:
    """A client that sends all its messages at once is slowed down, not refused."""
    begun: list[BytesValue] = []
    may_end = asyncio.Event()

    async def wait(request: BytesValue, _call: Call) -> BytesValue:
        begun.append(request)
        await may_end.wait()
        return BytesValue(value=b"1")

    async with _server(wait, 16 * BUDGET_BYTES) as server, _client(server) as client:
        stream = await client.open("InOrder")
        left = [_message(PART_BYTES)] * 64
        while left and client.h2.local_flow_control_window(stream) > len(left[-1]):
            await client.send(stream, left.pop())
        async with asyncio.timeout(10):
            while len(begun) < 2:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(begun) == 2  # more than half of the longest message
        may_end.set()
        while left:
            await client.read_until(lambda: client.h2.local_flow_control_window(stream) > len(left[-1]))
            await client.send(stream, left.pop())
        client.h2.end_stream(stream)
        await client.flush()
        assert (await client.reply(stream)).code == "OK"
        assert len(begun) == 64


@pytest.mark.parametrize("framing", ["content-length: 400000", "transfer-encoding: chunked"])
async def test_connect_answers_429_over_http1(framing: str) -> None:
    """With the numbers in Connect's error."""
    head = f"POST /tests.Echo/Say HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n{framing}\r\n\r\n"
    part = bytes(2**12) if framing.startswith("content") else b"1000\r\n" + bytes(2**12) + b"\r\n"
    async with AsyncExitStack() as stack, _server() as server:
        # Two connections that hold a third each: the last one finds less room.
        for _ in range(2):
            holder = await stack.enter_async_context(_client(server))
            for _ in range(2):
                await holder.send(await holder.open("Say"), _half(150_000))
        async with asyncio.timeout(10):
            while server.pending_bytes < 600_000:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + part * 64)
        answer = await reader.readuntil(b"}")
        writer.close()
        assert answer.startswith(b"HTTP/1.1 429")
        assert b'"code": "resource_exhausted"' in answer
        assert b"--max-pending-bytes" in answer
        async with asyncio.timeout(10):
            while server.pending_bytes > 620_000 + 4 * REQUEST_BYTES:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)


HEAD = HeadersFrame(1, b"\x82\x86\x84" + b"\x00\x01a\x7f\xff\x7f" + bytes(15_000)).serialize()
INPUTS = {
    "header blocks": PREFACE
    + SettingsFrame(0).serialize()
    + HEAD
    + ContinuationFrame(1, bytes(2**14)).serialize() * 2,
    "half a frame": PREFACE + SettingsFrame(0).serialize() + DataFrame(1, bytes(2**14)).serialize()[:-1],
    "half a head": b"GET / HTTP/1.1\r\na: " + b"a" * 16_000,
}


@pytest.mark.parametrize("kind", INPUTS)
async def test_input_that_is_no_request_yet_counts_too(kind: str) -> None:
    """Of many connections. What would be too much is not kept; its connection is closed."""
    async with _server() as server:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(12)]
        most = 0
        for _, writer in opened:
            writer.write(INPUTS[kind])
        async with asyncio.timeout(10):
            while most < 12 * 15_000 * (1 if kind == "half a frame" else 0.6):
                most = max(most, server.pending_bytes)
                await asyncio.sleep(0)
        assert most <= BUDGET_BYTES
        for _, writer in opened:
            writer.close()
        await _is_free(server)


@pytest.mark.parametrize("window", [0, 2**14])
async def test_answers_that_are_not_read_count_too(window: int) -> None:
    """A small request can have a large answer. What is too much is a status; the connection lives."""
    async with _server() as server, _client(server) as client:
        client.h2.update_settings({4: window})
        await client.flush()
        streams = [await client.open("Long") for _ in range(6)]
        for stream in streams:
            await client.send(stream, bytes(5), end=True)
        replies = [client.replies[each] for each in streams]
        await client.read_until(lambda: sum(reply.has_ended for reply in replies) >= 2)
        assert PART_BYTES < server.pending_bytes <= BUDGET_BYTES
        for stream, reply in zip(streams, replies, strict=True):
            if not reply.has_ended:
                client.h2.reset_stream(stream)
            else:
                assert reply.code == "RESOURCE_EXHAUSTED"
                assert "(--max-pending-bytes)" in reply.trailers["grpc-message"]
        client.h2.update_settings({4: 2**16})
        assert (await client.call("Say", _message(10))).code == "OK"
        await _is_free(server)
