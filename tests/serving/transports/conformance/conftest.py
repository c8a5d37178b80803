"""Both transports with one table of test methods, wrapped by the real `Middleware`, and clients for them."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from serving import errors
from serving.metrics.recorder import Metrics
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Rpc, Stream, Unary
from serving.transports.grpc_aio.server import GrpcServer
from serving.transports.h2.server import H2Server
from serving.transports.tls import TlsFiles

SERVICE = "tests.Echo"
MAX_MESSAGE_BYTES = 2**20


@dataclass(frozen=True)
class Differences:
    """Where the two transports differ on the wire. In everything else they are the same."""

    # Invalid messages that are not detected: gRPC's core ignores or accepts them, or waits for ever.
    unnoticed: frozenset[str] = frozenset()
    # The status for an unknown grpc-encoding; and whether the answer names known ones: doc/compression.md.
    unknown_compression: str = "UNIMPLEMENTED"
    names_compressions: bool = True
    # Other content types than gRPC's are rejected. gRPC's core answers them as gRPC.
    checks_content_type: bool = True
    # A call at the last moment of a stop can end as CANCELLED: grpc.aio sends no GOAWAY before it closes.
    may_cancel_at_stop: bool = False


DIFFERENCES = {
    "h2": Differences(),
    "grpc": Differences(
        unnoticed=frozenset({"an invalid flag", "cut off in its length", "cut off inside", "no message"}),
        unknown_compression="INTERNAL",
        names_compressions=False,
        checks_content_type=False,
        may_cancel_at_stop=True,
    ),
}
SERVERS = {"h2": H2Server, "grpc": GrpcServer}


def _no_place() -> None:
    raise errors.Overloaded("full")


@dataclass
class Echo:
    """The methods that tests call, and records of the calls."""

    calls: Counter[str] = field(default_factory=Counter)
    deadlines_s: list[float] = field(default_factory=list)  # of Say, on the clock of time.monotonic()
    produced: int = 0  # messages that Count has yielded
    taken: int = 0  # messages that Sum has received
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    cancelled: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def rows(self) -> tuple[Rpc, ...]:
        """The table."""
        return (
            Unary(f"/{SERVICE}/Nothing", Empty, self.say),
            Unary(f"/{SERVICE}/Say", BytesValue, self.say),
            Unary(f"/{SERVICE}/Fail", StringValue, self.fail),
            Unary(f"/{SERVICE}/Full", BytesValue, self.full, admit=_no_place),
            Unary(f"/{SERVICE}/Metadata", Empty, self.metadata),
            Unary(f"/{SERVICE}/Wait", BytesValue, self.wait),
            Stream(f"/{SERVICE}/Each", BytesValue, self.each),
            Stream(f"/{SERVICE}/Sum", BytesValue, self.sum),
            Stream(f"/{SERVICE}/Count", StringValue, self.count),
            Stream(f"/{SERVICE}/WaitStream", BytesValue, self.wait_stream),
            Stream(f"/{SERVICE}/Refuse", BytesValue, self.refuse),
            Stream(f"/{SERVICE}/FailAfterOne", StringValue, self.fail_after_one),
        )

    async def say(self, request: Any, call: Call) -> Any:
        """Return the request."""
        self.deadlines_s.append(call.deadline_s)
        self.calls["say"] += 1
        return request

    async def fail(self, request: StringValue, _call: Call) -> StringValue:
        """Raise the error of the first word, with the rest as its message."""
        kind, _, message = request.value.partition(" ")
        raise getattr(errors, kind)(message)

    async def full(self, _request: BytesValue, _call: Call) -> BytesValue:
        """Reject every request. Transports can do so before a request is complete."""
        raise errors.Overloaded("full")

    async def metadata(self, _request: Empty, call: Call) -> StringValue:
        """Return the metadata of the call as JSON."""
        return StringValue(value=json.dumps(dict(call.metadata)))

    async def wait(self, request: BytesValue, _call: Call) -> BytesValue:
        """Release `begun`; return the request after `may_end`."""
        self.begun.release()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        return request

    async def each(self, requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[BytesValue]:
        """Return every message at once."""
        self.begun.release()
        try:
            async for request in requests:
                yield request
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.release()
            raise

    async def sum(self, requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[Int64Value]:
        """Wait for `may_end`, then return the number of bytes in all messages."""
        self.begun.release()
        await self.may_end.wait()
        total = 0
        async for request in requests:
            self.taken += 1
            total += len(request.value)
        yield Int64Value(value=total)

    async def count(self, requests: AsyncIterator[StringValue], _call: Call) -> AsyncIterator[BytesValue]:
        """For every "MESSAGES BYTES" yield so many messages of so many bytes; the first four are a number."""
        async for request in requests:
            messages, size = map(int, request.value.split())
            for number in range(messages):
                self.produced += 1
                yield BytesValue(value=number.to_bytes(4, "big").ljust(size, b"\0")[:size])

    async def wait_stream(
        self, _requests: AsyncIterator[BytesValue], _call: Call
    ) -> AsyncIterator[BytesValue]:
        """Yield one answer, then wait for `may_end`. Reads nothing."""
        self.begun.release()
        try:
            yield BytesValue(value=b"begun")
            await self.may_end.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.release()
            raise

    async def refuse(self, _requests: AsyncIterator[Any], _call: Call) -> AsyncIterator[BytesValue]:
        """Fail before reading."""
        raise errors.Unauthenticated("nobody is known here")
        yield

    async def fail_after_one(
        self, requests: AsyncIterator[StringValue], call: Call
    ) -> AsyncIterator[StringValue]:
        """Return the first message, then fail as it says."""
        async for request in requests:
            yield request
            await self.fail(request, call)


@dataclass
class Served:
    """A running server and what it serves."""

    server: H2Server | GrpcServer
    middleware: Middleware
    metrics: Metrics
    echo: Echo

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.server.port}"


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(params=sorted(SERVERS))
def transport(request: pytest.FixtureRequest) -> str:
    """The name of a transport. Every test of this folder runs with each."""
    name: str = request.param
    return name


@pytest.fixture
def differences(transport: str) -> Differences:
    """Where this transport differs."""
    return DIFFERENCES[transport]


@pytest.fixture
def serve(transport: str) -> Serve:
    """A function that runs a server of the test methods on a free port."""

    @asynccontextmanager
    async def running(
        *, max_message_bytes: int = MAX_MESSAGE_BYTES, tls: TlsFiles | None = None
    ) -> AsyncIterator[Served]:
        metrics, echo = Metrics(), Echo()
        middleware = Middleware(metrics)
        rows = [middleware.wrap(row) for row in echo.rows()]
        limit = max_message_bytes
        async with SERVERS[transport](
            rows, host="127.0.0.1", port=0, max_message_bytes=limit, tls=tls
        ) as server:
            try:
                yield Served(server, middleware, metrics, echo)
            finally:
                echo.may_end.set()

    return running


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """A running server."""
    async with serve() as each:
        yield each


class Methods:
    """The test methods over a real channel: `methods.unary("Say")(message)`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def unary(self, name: str, answer: Any = BytesValue) -> Any:
        """One message in, one out."""
        return self.channel.unary_unary(f"/{SERVICE}/{name}", _serialize, answer.FromString)

    def stream(self, name: str, answer: Any = BytesValue) -> Any:
        """Messages in, messages out."""
        return self.channel.stream_stream(f"/{SERVICE}/{name}", _serialize, answer.FromString)

    def client_stream(self, name: str, answer: Any = BytesValue) -> Any:
        """Messages in, one out."""
        return self.channel.stream_unary(f"/{SERVICE}/{name}", _serialize, answer.FromString)

    def server_stream(self, name: str, answer: Any = BytesValue) -> Any:
        """One message in, messages out."""
        return self.channel.unary_stream(f"/{SERVICE}/{name}", _serialize, answer.FromString)


def _serialize(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@pytest.fixture
async def channels() -> AsyncIterator[Callable[..., Methods]]:
    """Open channels of grpc.aio: `channels(served, *options)`."""
    opened: list[grpc.aio.Channel] = []

    def connect(served: Served | str, *options: tuple[str, Any], **keywords: Any) -> Methods:
        address = served if isinstance(served, str) else served.address
        # By default channels to the same target share a connection.
        plain = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
        channel = grpc.aio.insecure_channel(address, options=[*plain, *options], **keywords)
        opened.append(channel)
        return Methods(channel)

    yield connect
    for channel in opened:
        await channel.close()


@pytest.fixture
async def methods(served: Served, channels: Callable[..., Methods]) -> Methods:
    """The methods of the running server, without retries."""
    return channels(served, ("grpc.enable_retries", 0))


@pytest.fixture
def failure_of() -> Callable[[Any], Any]:
    """A function that awaits a call, or reads a stream to its end, and returns its error."""

    async def fail(call: Any) -> grpc.aio.AioRpcError:
        async def end() -> None:
            if not hasattr(call, "__aiter__"):
                await call
                return
            async for _ in call:
                pass

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await end()
        return caught.value

    return fail
