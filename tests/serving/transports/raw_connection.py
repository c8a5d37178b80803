"""An HTTP/2 connection that sends valid and invalid requests."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

_FRAME_HEADER_BYTES = 9
_GOAWAY = 7


@dataclass
class Reply:
    """Everything received on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    has_ended: bool = False
    reset: int | None = None  # the error code of RST_STREAM

    @property
    def code(self) -> str:
        """The name of the gRPC status, from the trailers or, without them, from the headers."""
        number = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return next((code.name for code in grpc.StatusCode if str(code.value[0]) == number), "none")


def _text(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """The headers as `header_encoding` has decoded them."""
    return {str(name): str(value) for name, value in headers}


class RawConnection:
    """A client of one HTTP/2 connection that sends any request, valid or not."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.replies: dict[int, Reply] = {}
        self.goaways: list[int] = []  # error codes of GOAWAY
        self.pongs: list[bytes] = []
        self.is_closed = False
        self._received = b""
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.h2.initiate_connection()
        await self.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Abort the connection, without GOAWAY or RST_STREAM."""
        self._writer.transport.abort()

    async def flush(self) -> None:
        """Send what `h2` has prepared."""
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def open(self, method: str, *headers: tuple[str, str], drop: tuple[str, ...] = ()) -> int:
        """Open a call; `headers` replace those of a gRPC client. Returns the number of the stream."""
        usual = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/tests.Echo/{method}",
            ":authority": "tests",
        }
        usual |= {"te": "trailers", "content-type": "application/grpc", **dict(headers)}
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [pair for pair in usual.items() if pair[0] not in drop])
        self.replies[stream] = Reply()
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of a body, in frames of allowed size."""
        size = self.h2.max_outbound_frame_size
        for start in range(0, len(data), size):
            self.h2.send_data(stream, data[start : start + size])
        if end:
            self.h2.end_stream(stream)
        await self.flush()

    async def call(self, method: str, body: bytes, *headers: tuple[str, str], **options: Any) -> Reply:
        """Make a call, and return its reply."""
        stream = await self.open(method, *headers, **options)
        await self.send(stream, body, end=True)
        return await self.reply(stream)

    async def reply(self, stream: int) -> Reply:
        """Read until a stream has ended."""
        reply = self.replies[stream]
        await self.read_until(lambda: reply.has_ended or reply.reset is not None)
        return reply

    async def read_until(self, is_enough: Callable[[], bool]) -> None:
        """Read until a condition holds. Fails if the connection closes first."""
        async with asyncio.timeout(20):
            while not is_enough():
                data = await self._reader.read(2**16)
                if not data:
                    self.is_closed = True
                    assert is_enough(), "the server has closed the connection"
                    return
                self._received += data
                self._take_frames()
                await self.flush()

    def _take_frames(self) -> None:
        # One by one, without GOAWAY: `h2` accepts nothing after it, and a graceful server does send more.
        while len(self._received) >= _FRAME_HEADER_BYTES:
            end = _FRAME_HEADER_BYTES + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                return
            frame, self._received = self._received[:end], self._received[end:]
            if frame[3] == _GOAWAY:
                self.goaways.append(int.from_bytes(frame[13:17], "big"))
                continue
            for event in self.h2.receive_data(frame):
                self._take(event)

    def _take(self, event: Event) -> None:
        reply = self.replies.get(getattr(event, "stream_id", None) or 0, Reply())
        match event:
            case ResponseReceived():
                reply.headers |= _text(event.headers)
            case DataReceived():
                reply.body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case TrailersReceived():
                reply.trailers |= _text(event.headers)
            case StreamEnded():
                reply.has_ended = True
            case StreamReset():
                reply.reset = event.error_code
            case PingAckReceived():
                self.pongs.append(event.ping_data)
