"""HTTP/1.1 over real sockets, or a fake one if bytes must arrive in one iteration of the event loop."""

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transports.http.asgi import App, Event, Receive, Send
from serving.transports.http.http1 import Http1Connection
from serving.transports.http.http1_lines import MAX_FIELDS
from serving.transports.http.rounds import WORK_PER_ROUND
from tests.serving.counting_turns import Loop

LINGER_0 = struct.pack("ii", 1, 0)  # close() resets the connection
GET = b"GET /%s HTTP/1.1\r\nHost: here\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}


def _body(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def echo(scope: Event, receive: Receive, send: Send) -> None:
    """Answer with the path and the body."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event["body"], event["more_body"]
    answer = scope["path"].encode() + b" " + body
    await send(OK | {"headers": [(b"content-length", b"%d" % len(answer))]})
    await send(_body(answer))


class Held:
    """An application that waits until `may_end`."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Event, _receive: Receive, send: Send) -> None:
        """Answer after `may_end`."""
        self.paths.append(scope["path"])
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await send(OK | {"headers": [(b"content-length", b"4")]})
        await send(_body(b"held"))


@dataclass
class Client:
    """A socket to a connection under test, with h11 to parse its answers."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: Http1Connection
    ended: asyncio.Event
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        self.http.send(h11.Request(method="GET", target="/", headers=[("host", "here")]))
        self.http.send(h11.EndOfMessage())
        status, body = 0, b""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
        return status, body

    async def _event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(2**16))
        return event


@asynccontextmanager
async def _connected(app: App) -> AsyncIterator[Client]:
    made: list[Http1Connection] = []
    accepted, ended = asyncio.Event(), asyncio.Event()

    def make() -> Http1Connection:
        accepted.set()
        made.append(Http1Connection(app, lambda _: ended.set()))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(10):
            await accepted.wait()
            yield Client(reader, writer, made[0], ended)
            writer.close()
            await ended.wait()
    finally:
        writer.close()
        server.close()
        await server.wait_closed()


async def test_a_connection_serves_one_request_after_the_other() -> None:
    """Keep-alive."""
    async with _connected(echo) as client:
        for path in (b"1", b"2", b"3"):
            client.writer.write(GET % path)
            assert await client.answer() == (200, b"/" + path + b" ")


@pytest.mark.parametrize("last", [b"GET / HTTP/1.0\r\n\r\n", GET[:-2] % b"" + b"Connection: close\r\n\r\n"])
async def test_a_connection_without_keep_alive_closes_after_the_answer(last: bytes) -> None:
    """HTTP/1.0, or `connection: close`."""
    async with _connected(echo) as client:
        client.writer.write(last)
        assert await client.answer() == (200, b"/ ")
        assert await client.reader.read() == b""


async def test_pipelined_requests_are_answered_in_order() -> None:
    """The second starts when the first is answered."""
    held = Held()
    async with _connected(held) as client:
        client.writer.write(GET % b"1" + GET % b"2" + GET % b"3")
        await held.begun.wait()
        assert held.paths == ["/1"]
        held.may_end.set()
        for _ in range(3):
            assert await client.answer() == (200, b"held")
        assert held.paths == ["/1", "/2", "/3"]


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4), st.data())
@settings(max_examples=30, deadline=None)
async def test_a_chunked_body_arrives_however_its_bytes_are_split(
    chunks: list[bytes], data: st.DataObject
) -> None:
    """And so does the next request on the connection."""
    client = h11.Connection(h11.CLIENT)
    head = h11.Request(
        method="POST", target="/a", headers=[("host", "here"), ("transfer-encoding", "chunked")]
    )
    sent = [client.send(event) for event in (head, *map(h11.Data, chunks), h11.EndOfMessage())]
    whole = b"".join(each or b"" for each in sent) + GET % b"b"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    transport = FakeTransport(echo)
    for start, end in zip([0, *cuts], [*cuts, None], strict=True):
        if piece := whole[start:end]:
            transport.connection.data_received(piece)
            await transport.settle()
    first, second = transport.written.split(b"HTTP/1.1 200")[1:]
    assert first.endswith(b"\r\n\r\n/a " + b"".join(chunks))
    assert second.endswith(b"\r\n\r\n/b ")


async def test_100_continue_is_sent_when_the_application_reads_the_body() -> None:
    """Before the answer, and not at all if the application does not read."""
    async with _connected(echo) as client:
        client.writer.write(EXPECT)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.writer.write(b"body")
        assert await client.answer() == (200, b"/ body")
    held = Held()
    held.may_end.set()
    async with _connected(held) as client:
        client.writer.write(EXPECT)
        assert await client.answer() == (200, b"held")
        assert await client.reader.read() == b""  # whether the body comes is unknown


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"nonsense\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01", {400}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}),  # without Host
        (GET[:-2] % b"" + b"a b: 1\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: here\r\na: " + b"x" * 2**17, {400, 431}),
        (GET[:-2] % b"" + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", {400}),
        (GET[:-2] % b"" + b"Transfer-Encoding: chunked\r\n\r\nnone\r\n", {400}),
    ],
    ids=["nonsense", "TLS", "no host", "a bad name", "a long head", "two lengths", "a bad chunk"],
)
async def test_an_invalid_request_is_rejected(sent: bytes, statuses: set[int]) -> None:
    """With a status, and the connection closes: the following bytes have no meaning."""
    transport = FakeTransport(echo)
    transport.connection.data_received(sent)
    await transport.settle()
    assert int(transport.written.removeprefix(b"HTTP/1.1 ")[:3]) in statuses
    assert transport.closed


CHUNKED = GET[:-2] % b"" + b"Transfer-Encoding: chunked\r\n\r\n"
BLANKS = b" " * 16_000


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (GET[:-2] % b"" + b"a:" + BLANKS + b"\0\r\n\r\n", 400),
        (GET[:-2] % b"" + b"a:" + BLANKS + b"\r\r\n\r\n", 400),
        (CHUNKED + b"1;" + BLANKS + b"\n\r\n", 400),
        (CHUNKED + b"0\r\na:" + BLANKS + b"\0\r\n\r\n", 400),
        (GET[:-2] % b"" + b"a:\r\n" * 40_000 + b"\r\n", 431),
        (CHUNKED + b"0\r\n" + b"a:\r\n" * 40_000 + b"\r\n", 431),
        (CHUNKED + b"1;" + b"a" * 4096 + b"\r\n", 400),
    ],
    ids=["head", "return", "chunk", "trailers", "many fields", "many trailers", "a long extension"],
)
async def test_a_hostile_line_costs_the_event_loop_little(sent: bytes, status: int) -> None:
    """Backtracking over blanks took a second, and 40,000 fields 0.1 s, in which nobody else was served."""
    transport = FakeTransport(echo)
    began_s = time.process_time()
    transport.connection.data_received(sent)
    await transport.settle()
    assert time.process_time() - began_s < 0.05
    assert int(transport.written.removeprefix(b"HTTP/1.1 ")[:3]) == status
    assert transport.closed


async def test_as_many_fields_as_the_limit_are_accepted() -> None:
    """The request line and the blank line do not count."""
    transport = FakeTransport(echo)
    transport.connection.data_received(GET[:-2] % b"" + b"a: b\r\n" * (MAX_FIELDS - 1) + b"\r\n")
    await transport.settle()
    assert transport.written.startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_disconnects_cancels_its_application() -> None:
    """At once, not when the answer is sent."""
    held = Held()
    async with _connected(held) as client:
        client.writer.write(GET % b"")
        await held.begun.wait()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        client.writer.transport.abort()
        await held.cancelled.wait()


async def test_a_client_that_shuts_down_its_side_gets_its_answer() -> None:
    """Like `nc`."""
    held = Held()
    async with _connected(held) as client:
        client.writer.write(GET % b"")
        client.writer.write_eof()
        await held.begun.wait()
        held.may_end.set()
        assert await client.answer() == (200, b"held")
        assert await client.reader.read() == b""


async def test_a_graceful_close_closes_an_idle_connection() -> None:
    """Also between two requests."""
    async with _connected(echo) as client:
        client.writer.write(GET % b"")
        await client.answer()
        client.connection.close_when_idle()
        assert await client.reader.read() == b""


async def test_a_graceful_close_lets_the_running_request_end() -> None:
    """It is answered; pipelined requests behind it are not started."""
    held = Held()
    async with _connected(held) as client:
        client.writer.write(GET % b"1" + GET % b"2")
        await held.begun.wait()
        client.connection.close_when_idle()
        held.may_end.set()
        assert await client.answer() == (200, b"held")
        assert await client.reader.read() == b""
    assert held.paths == ["/1"]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_application_that_fails_closes_the_connection(
    caplog: pytest.LogCaptureFixture, *, has_begun: bool
) -> None:
    """The log gets one line, and no answer looks complete."""

    async def app(_scope: Event, _receive: Receive, send: Send) -> None:
        if has_begun:
            await send(OK)
            await send(_body(b"some", more=True))
        raise ValueError("it failed")

    async with _connected(app) as client:
        client.writer.write(GET % b"")
        got = await client.reader.read()
        assert b"some" in got if has_begun else got == b""
        assert not got.endswith(b"0\r\n\r\n")
        await client.ended.wait()
    assert [(each.message, each.levelname) for each in caplog.records] == [("application_failed", "ERROR")]


async def test_an_answer_waits_for_a_client_that_does_not_read() -> None:
    """`send` waits, and the whole answer arrives once the client reads."""
    sent: list[int] = []

    async def app(_scope: Event, _receive: Receive, send: Send) -> None:
        await send(OK)
        for part in range(1, 65):
            sent.append(part)
            await send(_body(bytes(2**18), more=True))
        await send(_body(b""))

    transport = FakeTransport(app)
    transport.connection.data_received(GET % b"")
    transport.connection.pause_writing()
    await transport.settle()
    assert sent == [1]
    transport.connection.resume_writing()
    await transport.settle()
    assert sent == list(range(1, 65))
    assert transport.written.endswith(b"0\r\n\r\n")


class FakeTransport(asyncio.Transport):
    """A fake socket, with a connection under test."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self.connection = Http1Connection(app, lambda _: None)
        self.written = b""
        self._reads, self.closed = True, False
        self.connection.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Record the bytes."""
        self.written += data

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self.closed

    def close(self) -> None:
        """The connection is notified in the next iteration."""
        if self.closed:
            return
        self.closed = True
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def is_reading(self) -> bool:
        """Whether reading is not paused."""
        return self._reads

    def pause_reading(self) -> None:
        """Record the pause."""
        self._reads = False

    def resume_reading(self) -> None:
        """Record the end of the pause."""
        self._reads = True

    async def settle(self) -> None:
        """Run the event loop until it is idle."""
        for _ in range(8):
            await asyncio.sleep(0)


async def test_a_large_unread_body_stays_in_the_socket() -> None:
    """Until the application receives the part before it."""
    may_read = asyncio.Event()

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await may_read.wait()
        await echo(scope, receive, send)

    transport = FakeTransport(app)
    transport.connection.data_received(b"PUT / HTTP/1.1\r\nHost: here\r\nContent-Length: 9999999\r\n\r\n")
    brought = 0
    while transport.is_reading():
        transport.connection.data_received(bytes(2**16))
        brought += 2**16
    assert brought <= 2**21
    may_read.set()
    await transport.settle()
    assert transport.is_reading()
    transport.close()
    await transport.settle()


async def test_pipelined_requests_take_little_memory() -> None:
    """Even if many are answered."""
    waits: list[asyncio.Future[None]] = []

    async def app(_scope: Event, _receive: Receive, send: Send) -> None:
        waits.append(asyncio.get_running_loop().create_future())
        await waits[-1]
        await send(OK | {"headers": [(b"content-length", b"0")]})
        await send(_body(b""))

    transport = FakeTransport(app)
    many = (GET % b"") * 2000
    brought = 0
    for _ in range(10):
        while transport.is_reading():
            transport.connection.data_received(many)
            brought += len(many)
        await transport.settle()
        waits[-1].set_result(None)
        await transport.settle()
    transport.close()
    await transport.settle()
    assert brought < 4 * 2**20


async def test_no_request_starts_on_a_closed_connection() -> None:
    """Even if the client disconnects in the iteration in which it is answered."""
    paths: list[str] = []

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await echo(scope, receive, send)
        transport.close()

    transport = FakeTransport(app)
    transport.connection.data_received(GET % b"1" + GET % b"2")
    await transport.settle()
    assert paths == ["/1"]


async def test_a_request_becomes_a_scope_of_asgi() -> None:
    """The path is not unquoted, and the query is separate."""
    scopes: list[Any] = []

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async with _connected(app) as client:
        client.writer.write(GET % b"a%20b?c=%20")
        await client.answer()
    (scope,) = scopes
    assert (scope["type"], scope["method"], scope["scheme"]) == ("http", "GET", "http")
    assert (scope["path"], scope["query_string"]) == ("/a%20b", b"c=%20")
    assert scope["headers"] == [(b"host", b"here")]


@pytest.mark.parametrize("eof", [False, True])
async def test_many_chunks_of_a_byte_take_many_turns(*, eof: bool) -> None:
    """A chunk takes 20 us: one read of 60 kB holds 10,000, which took 0.2 s in one turn of the event loop."""
    count = 5000
    head = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with _connected(echo) as client:
        loop = Loop()
        client.writer.write(head + b"1\r\nx\r\n" * count + b"0\r\n\r\n" + GET % b"next" * (not eof))
        if eof:
            client.writer.write_eof()
        assert await client.answer() == (200, b"/ " + b"x" * count)
        loop.stop()
        assert loop.turn >= 20 * count / WORK_PER_ROUND
        if not eof:
            assert await client.answer() == (200, b"/next ")
