"""gRPC calls as an ASGI server delivers them: metadata, deadlines, framing and compression of messages."""

import base64
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple

from google.rpc import error_details_pb2, status_pb2

from serving.rpc.handlers import StreamHandler, UnaryHandler
from serving.rpc.status import DETAILS_KEY, Code
from serving.transports.http.asgi import ANSWER, EXTENSIONS, TRAILERS, App, Event
from serving.transports.rpc_over_http.grpc_app import GrpcApp
from serving.transports.rpc_over_http.grpc_framing import PREFIX
from tests.fuzz.echo import MAX_MESSAGE_BYTES, STREAM, UNARY, echo_stream, echo_unary
from tests.fuzz.mutations import blob, cut, mutate, number

_DISCONNECT = {"type": "http.disconnect"}
_BOMBS = [gzip.compress(bytes(size), 9, mtime=0) for size in (MAX_MESSAGE_BYTES + 1, 2**20)]
_TIMEOUTS = (
    b"1S",
    b"99999999H",
    b"0m",
    b"1n",
    b"100u",
    b"5x",
    b"",
    b"-1S",
    b"123456789S",
    b"1 S",
    b"\xd9\xa1S",
    b"00000001M",
)
_HEADERS: list[tuple[bytes, bytes]] = [
    (b"te", b"trailers"), (b"grpc-accept-encoding", b"gzip"), (b"grpc-accept-encoding",
    b"identity, gzip,deflate"),
    (b"x-request-id", b"abc"), (b"x-request-id", b"a\xff b"), (b"authorization", b"Bearer x"), (b"x-bin",
    b"%%%"),
    (b"user-agent", b"\xe4\xf6"), (b"grpc-encoding", b"snappy"), (b"content-length", b"7"),
    (b"grpc-message", b"%"),
]  # fmt: skip


class GrpcCall(NamedTuple):
    """One call, as the events of an ASGI server."""

    path: str
    headers: list[tuple[bytes, bytes]]
    body: list[bytes]
    is_cut_off: bool  # the client disconnects instead of ending its request


class GrpcCalls:
    """Calls of one application."""

    def __init__(self, app: App) -> None:
        self._app = app

    def make(self, random: Random) -> GrpcCall:
        """A call whose headers and messages are often odd."""
        encoding = random.choice((b"identity", b"gzip", b"gzip", b"deflate"))
        headers = [(b"content-type", _content_type(random))]
        if encoding != b"identity" or random.random() < 0.2:
            headers.append((b"grpc-encoding", encoding))
        headers += random.sample(_HEADERS, random.choice((0, 0, 1, 2)))
        if random.random() < 0.2:
            timeout = random.choice(_TIMEOUTS)
            headers.append((b"grpc-timeout", timeout if random.random() < 0.7 else mutate(random, timeout)))
        body = b"".join(_message(random, encoding) for _ in range(random.choice((0, 1, 1, 1, 1, 2, 3, 20))))
        if random.random() < 0.2:
            body = mutate(random, body, most=3)
        path = random.choice((UNARY, UNARY, STREAM, STREAM, "/echo.Echo/None"))
        return GrpcCall(path, headers, cut(random, body, 4), random.random() < 0.05)

    async def check(self, made: GrpcCall) -> str:
        """The call has one status, which tells of no failure of the server."""
        scope = {
            "type": "http",
            "path": made.path,
            "headers": made.headers,
            "extensions": EXTENSIONS,
            "method": "POST",
        }
        events = await answer_events(self._app, scope, made.body, is_cut_off=made.is_cut_off)
        if made.is_cut_off and (not events or events[-1].get("more_body")):
            return "none: the client is gone"
        return status_of_events(events)


async def answer_events(
    app: App, scope: Event, body: list[bytes], *, is_cut_off: bool = False
) -> list[Event]:
    """Run an application on a request; return the events of its answer."""
    arriving: list[dict[str, Any]] = [
        {"type": "http.request", "body": each, "more_body": True} for each in body
    ]
    arriving[-1]["more_body"] = is_cut_off
    arriving.reverse()
    events: list[Event] = []

    async def receive() -> Event:
        return arriving.pop() if arriving else _DISCONNECT

    async def send(event: Event) -> None:
        events.append(event)

    try:
        await app(scope, receive, send)
    except BaseException as error:
        if not is_cut_off or type(error).__name__ != "CancelledError":
            raise
    return events


def status_of_events(events: list[Event]) -> str:
    """Return the status of a gRPC answer, after checking the order of its events."""
    first, last = events[0], events[-1]
    if first["type"] == ANSWER:
        assert len(events) == 1
        return status_of_trailers(dict(first["trailers"]))
    assert first["type"] == "http.response.start", first
    if first["status"] != 200:
        return f"HTTP {first['status']}"
    if last["type"] == TRAILERS:
        assert all(each["type"] == "http.response.body" for each in events[1:-1])
        return status_of_trailers(dict(last["headers"]))
    return status_of_trailers(dict(first["headers"]))


def status_of_trailers(trailers: dict[bytes, bytes]) -> str:
    """Return the name of the code, or MALFORMED: gRPC's specification calls the client's error INTERNAL."""
    code = Code(int(trailers[b"grpc-status"]))
    if code is not Code.INTERNAL:
        return code.name
    packed = trailers.get(DETAILS_KEY.encode())
    if packed is None:
        assert trailers[b"grpc-message"], trailers
        return "MALFORMED"
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(base64.b64decode(packed + b"==")).details[0].Unpack(info)
    assert info.reason == "MALFORMED", trailers
    return info.reason


def _content_type(random: Random) -> bytes:
    return (
        b"application/grpc"
        if random.random() < 0.9
        else random.choice((b"application/grpc+proto", b"application/json", b""))
    )


def _message(random: Random, encoding: bytes) -> bytes:
    plain = blob(random) * random.choice((1, 1, 1, 1, 20, 200))
    if encoding == b"identity" or random.random() < 0.3:
        flag, packed = 0, plain
    elif encoding == b"gzip":
        flag, packed = 1, gzip.compress(plain, 1, mtime=0) if random.random() < 0.9 else random.choice(_BOMBS)
    else:
        flag, packed = 1, zlib.compress(plain)
    if random.random() < 0.1:
        packed = mutate(random, packed)
    if random.random() < 0.05:
        flag = random.choice((0, 1, 2, 0x80, 255))
    length = len(packed) if random.random() < 0.95 else number(random) % 2**32
    return PREFIX.pack(flag, length) + packed


@asynccontextmanager
async def open_grpc_calls() -> AsyncIterator[GrpcCalls]:
    """Open the target."""
    handlers = (UnaryHandler(UNARY, echo_unary), StreamHandler(STREAM, echo_stream))
    yield GrpcCalls(GrpcApp(handlers, max_message_bytes=MAX_MESSAGE_BYTES))
