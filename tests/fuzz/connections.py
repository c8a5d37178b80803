"""Whole connections over a fake socket, from the first byte to the last answer, in HTTP/2 and HTTP/1.1."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

from serving.rpc.handlers import StreamHandler, UnaryHandler
from serving.transports.http.asgi import ANSWER, App, Event, Receive, Send
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.http1 import Http1Connection
from serving.transports.http.http2 import Http2Connection
from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.protocol_detection import ProtocolDetector
from serving.transports.rpc_over_http.grpc_app import GrpcApp
from tests.fuzz.echo import MAX_MESSAGE_BYTES, STREAM, UNARY, echo_stream, echo_unary
from tests.fuzz.http1_requests import make_http1
from tests.fuzz.http2_frames import PING_OF_CHECK, PONG, ends_between_frames, make_http2, split_frames
from tests.fuzz.mutations import cut, mutate

_TURNS = 6  # of the event loop after each piece
_MOST_TURNS = 400  # after the last one

_Pieces = list[bytes]


class Conversation(NamedTuple):
    """What a client sends, and what it sends it to."""

    app: str
    pieces: _Pieces
    is_stuck: bool  # the client reads nothing for a while


class FakeTransport(asyncio.Transport):
    """A socket that accepts everything."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.Protocol
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Record the bytes, as long as the connection is open."""
        if not self.is_closed:
            self.written += data

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self.is_closed

    def close(self) -> None:
        """As in asyncio: the protocol is notified in the next iteration."""
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self._lost)

    abort = close

    def _lost(self) -> None:
        self.protocol.connection_lost(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """The next bytes are for this protocol."""
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that gets the bytes."""
        return self.protocol

    def get_extra_info(self, _name: str, default: Any = None) -> Any:  # noqa: ANN401 - as in asyncio
        """Nothing is known: no TLS, no address."""
        return default

    def can_write_eof(self) -> bool:
        """As with TLS."""
        return False

    def pause_reading(self) -> None:
        """Nothing: what is sent arrives."""

    def resume_reading(self) -> None:
        """Nothing."""

    def get_write_buffer_size(self) -> int:
        """Everything is sent at once."""
        return 0


class Connections:
    """Opens a connection for every input, and checks that it ends as it must."""

    def __init__(self, apps: dict[str, App]) -> None:
        self._apps = apps
        self._busy_poll = BusyPoll()
        self._idle_tasks = len(asyncio.all_tasks())

    async def serve(self, made: Conversation) -> FakeTransport:
        """Deliver the pieces; return the transport, whose connection may still be open."""
        app = self._apps[made.app]
        transport = FakeTransport()
        transport.protocol = ProtocolDetector(
            lambda: Http2Connection(app, lambda _: None, self._busy_poll),
            lambda: Http1Connection(app, lambda _: None),
        )
        transport.protocol.connection_made(transport)
        if made.is_stuck:
            transport.protocol.pause_writing()
        for piece in made.pieces:
            if transport.is_closed:
                break
            if piece:
                transport.protocol.data_received(piece)
            await _turns(_TURNS)
        if made.is_stuck and not transport.is_closed:
            transport.protocol.resume_writing()
        return transport

    async def end(self, transport: FakeTransport) -> None:
        """Close the connection, and check that nothing of it still runs."""
        transport.abort()
        for _ in range(_MOST_TURNS):
            await asyncio.sleep(0)
            if len(asyncio.all_tasks()) == self._idle_tasks:
                return
        raise AssertionError(f"tasks are left of a closed connection: {asyncio.all_tasks()}")


class Http2(Connections):
    """HTTP/2 from the preface on."""

    def make(self, random: Random) -> Conversation:
        """A valid conversation, changed."""
        sent = PREFACE + make_http2(random)
        if random.random() < 0.02:
            sent = mutate(random, sent)
        return Conversation(random.choice(list(self._apps)), cut(random, sent, 4), random.random() < 0.1)

    async def check(self, made: Conversation) -> str:
        """Either GOAWAY is sent and the connection ends, or it still answers."""
        transport = await self.serve(made)
        sent = b"".join(made.pieces)
        if sent.startswith(PREFACE) and not transport.is_closed and ends_between_frames(sent[len(PREFACE) :]):
            transport.protocol.data_received(PING_OF_CHECK)
            for _ in range(_MOST_TURNS):
                if transport.is_closed or PONG in transport.written:
                    break
                await asyncio.sleep(0)
            assert transport.is_closed or PONG in transport.written, (
                "the connection is open but does not answer"
            )
        outcome = "closed" if transport.is_closed else "open"
        if sent.startswith(PREFACE):
            frames = list(split_frames(bytes(transport.written)))
            if transport.is_closed:
                assert any(kind == 7 for kind, *_ in frames), "closed without GOAWAY"
            answers = sum(kind == 1 for kind, *_ in frames)
            outcome += f", {min(answers, 3)} HEADERS"
        await self.end(transport)
        return outcome


class Http1(Connections):
    """HTTP/1.1 requests."""

    def make(self, random: Random) -> Conversation:
        """A few requests, changed."""
        pieces = cut(random, make_http1(random), 4)
        return Conversation(random.choice(list(self._apps)), pieces, random.random() < 0.1)

    async def check(self, made: Conversation) -> str:
        """Answers have a status, and none is 500."""
        transport = await self.serve(made)
        await _turns(_TURNS)
        written = bytes(transport.written)
        outcome = "closed" if transport.is_closed else "open"
        if written and not b"".join(made.pieces).startswith(PREFACE):
            head, _, status = written[:12].partition(b" ")
            assert head in (b"HTTP/1.1", b"HTTP/1.0"), written[:40]
            assert status.isdigit(), written[:40]
            assert b"HTTP/1.1 500" not in written, "an answer has the status 500"
            outcome += f", {status.decode()}"
        await self.end(transport)
        return outcome


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _echo(scope: Event, receive: Receive, send: Send) -> None:
    """Answer with the body of the request, in one of three forms."""
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = body + event.get("body", b""), event.get("more_body", False)
    if scope["path"] == "/answer" and ANSWER in scope["extensions"]:
        await send({"type": ANSWER, "headers": ((b"a", b"b"),), "body": body, "trailers": [(b"c", b"d")]})
        return
    body = b"" if scope["method"] == "HEAD" else body
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    if scope["path"] == "/parts":
        await send({"type": "http.response.body", "body": body[:7], "more_body": True})
        body = body[7:]
    await send({"type": "http.response.body", "body": body})


def _apps() -> dict[str, App]:
    handlers = (UnaryHandler(UNARY, echo_unary), StreamHandler(STREAM, echo_stream))
    return {"echo": _echo, "gRPC": GrpcApp(handlers, max_message_bytes=MAX_MESSAGE_BYTES)}


@asynccontextmanager
async def open_http2() -> AsyncIterator[Http2]:
    """Open the target for HTTP/2."""
    yield Http2(_apps())


@asynccontextmanager
async def open_http1() -> AsyncIterator[Http1]:
    """Open the target for HTTP/1.1."""
    yield Http1({"echo": _echo})
