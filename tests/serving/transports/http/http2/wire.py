"""A connection under test over a fake socket: bytes go in, frames of hyperframe come out."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from serving.transports.http.asgi import App
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.http2 import Http2Connection
from serving.transports.http.http2.rate_limits import RATES, Rate
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.http.rounds import Rounds

GET = b"\x82\x86\x84"  # in HPACK's static table
TURNS = 8  # of the event loop: enough for every test here to become idle


def parse_frames(data: bytes) -> Iterator[Any]:
    """Bytes -> hyperframe's frames."""
    offset = 0
    while offset < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data)[offset : offset + 9])
        end = offset + 9 + length
        assert end <= len(data), "a frame is cut off"
        frame.parse_body(memoryview(data)[offset + 9 : end])
        yield frame
        offset = end


class FakeTransport(asyncio.Transport):
    """A fake socket: accepts everything and delivers nothing."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closed = False
        self.is_stuck = False  # the client reads nothing: what was written is never sent
        self.reads = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Record the bytes."""
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self.closed

    def can_write_eof(self) -> bool:
        """As with TLS."""
        return False

    def pause_reading(self) -> None:
        """Record that nothing more is to be delivered."""
        self.reads = False

    def resume_reading(self) -> None:
        """The opposite."""
        self.reads = True

    def close(self) -> None:
        """As in asyncio: the protocol is notified in the next iteration, after everything is sent."""
        if not self.closed and not self.is_stuck:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        self.closed = True

    def abort(self) -> None:
        """As in asyncio: the same, without waiting for bytes to be sent."""
        if not self.closed or self.is_stuck:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        self.closed, self.is_stuck = True, False


class Wire:
    """A connection under test, and the frames that it has written."""

    def __init__(
        self,
        app: App,
        limits: Limits = DEFAULT_LIMITS,
        *,
        rounds: Rounds | None = None,
        rates: Sequence[Rate] = RATES,
    ) -> None:
        self.ended: list[Http2Connection] = []
        self.closed = asyncio.Event()
        self.connection = Http2Connection(
            app, self._on_closed, BusyPoll(), rounds=rounds, rates=rates, limits=limits
        )
        self.transport = FakeTransport(self.connection)
        self.frames: list[Any] = []
        self.is_held = False  # the test expects that reading stays paused
        self.connection.connection_made(self.transport)

    def _on_closed(self, connection: Http2Connection) -> None:
        self.ended.append(connection)
        self.closed.set()

    def feed(self, *pieces: bytes) -> None:
        """Deliver bytes in one piece."""
        self.connection.data_received(b"".join(pieces))

    def head(self, stream: int, *, ends: bool = True) -> bytes:
        """HEADERS of GET /."""
        return HeadersFrame(stream, GET, flags=["END_HEADERS", *["END_STREAM"] * ends]).serialize()

    async def settle(self) -> None:
        """Run the event loop until it is idle, and parse what was written."""
        async with asyncio.timeout(10):
            # There is no event for it.
            while not (self.transport.reads or self.transport.closed or self.is_held):  # noqa: ASYNC110
                await asyncio.sleep(0)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self.frames += parse_frames(bytes(self.transport.written))
        self.transport.written.clear()

    async def begun(self) -> "Wire":
        """Deliver the client's SETTINGS, and forget the frames so far."""
        self.feed(SettingsFrame(0).serialize())
        await self.settle()
        self.frames.clear()
        return self

    def of(self, stream: int) -> list[Any]:
        """The frames of a stream, without WINDOW_UPDATE."""
        return [each for each in self.frames if each.stream_id == stream and each.type != 8]

    def body(self, stream: int) -> bytes:
        """The body of a stream."""
        return b"".join(each.data for each in self.of(stream) if each.type == 0)

    def is_over(self, stream: int) -> bool:
        """Whether the answer is complete."""
        return any("END_STREAM" in each.flags for each in self.of(stream))

    def resets(self, stream: int) -> list[int]:
        """The error codes of a stream's RST_STREAM."""
        return [each.error_code for each in self.of(stream) if isinstance(each, RstStreamFrame)]

    @property
    def goaways(self) -> list[tuple[int, int]]:
        """The last stream and the error code of every GOAWAY."""
        return [
            (each.last_stream_id, each.error_code) for each in self.frames if isinstance(each, GoAwayFrame)
        ]

    def credit(self, stream: int) -> int:
        """The sum of a stream's WINDOW_UPDATE increments."""
        updates = [each for each in self.frames if each.stream_id == stream and each.type == 8]
        return sum(each.window_increment for each in updates)
