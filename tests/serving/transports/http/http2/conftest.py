"""A connection under test with a fake of its socket: frames go in, frames of hyperframe come out."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame

from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.http2 import Http2Connection

App = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]

GET = b"\x82\x86\x84"  # by the static table of HPACK
TURNS = 8  # of the event loop: more than anything here takes to become quiet


def _parse(data: bytes) -> Iterator[Any]:
    offset = 0
    while offset < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data)[offset : offset + 9])
        end = offset + 9 + length
        assert end <= len(data), "a frame is cut"
        frame.parse_body(memoryview(data)[offset + 9 : end])
        yield frame
        offset = end


class FakeTransport(asyncio.Transport):
    """The fake of a socket: takes all, and gives nothing."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closed = False
        self.is_stuck = False  # its peer reads nothing, so that what was written is never sent

    def write(self, data: Any) -> None:
        """Keep it."""
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        """Whether it is on its way to the end."""
        return self.closed

    def close(self) -> None:
        """As asyncio does: tell the protocol in the next turn, but not before all is sent."""
        if not self.closed and not self.is_stuck:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        self.closed = True

    def abort(self) -> None:
        """Whether all is sent or not."""
        if not self.closed or self.is_stuck:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
        self.closed, self.is_stuck = True, False


class Wire:
    """A connection under test, and all the frames that came out of it."""

    def __init__(self, app: App) -> None:
        self.ended: list[Http2Connection] = []
        self.connection = Http2Connection(app, self.ended.append, BusyPoll())
        self.transport = FakeTransport(self.connection)
        self.frames: list[Any] = []
        self.connection.connection_made(self.transport)

    def feed(self, *pieces: bytes) -> None:
        """Bring them all at once."""
        self.connection.data_received(b"".join(pieces))

    def head(self, stream: int, *, ends: bool = True) -> bytes:
        """Of a request: GET /."""
        return HeadersFrame(stream, GET, flags=["END_HEADERS", *["END_STREAM"] * ends]).serialize()

    async def settle(self) -> None:
        """Let everything run that can, and read what came out."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self.frames += _parse(bytes(self.transport.written))
        self.transport.written.clear()

    async def begun(self) -> "Wire":
        """With the client's settings."""
        self.feed(SettingsFrame(0).serialize())
        await self.settle()
        self.frames.clear()
        return self

    def of(self, stream: int) -> list[Any]:
        """The frames of a stream, without WINDOW_UPDATE."""
        return [each for each in self.frames if each.stream_id == stream and each.type != 8]

    def body(self, stream: int) -> bytes:
        """What DATA of a stream has brought."""
        return b"".join(each.data for each in self.of(stream) if each.type == 0)

    def is_over(self, stream: int) -> bool:
        """Whether the answer is complete."""
        return any("END_STREAM" in each.flags for each in self.of(stream))

    def resets(self, stream: int) -> list[int]:
        """Why a stream was reset."""
        return [each.error_code for each in self.of(stream) if isinstance(each, RstStreamFrame)]

    @property
    def goaways(self) -> list[tuple[int, int]]:
        """The last stream and the reason of every GOAWAY."""
        return [
            (each.last_stream_id, each.error_code) for each in self.frames if isinstance(each, GoAwayFrame)
        ]

    def credit(self, stream: int) -> int:
        """By how much WINDOW_UPDATE has opened a window."""
        updates = [each for each in self.frames if each.stream_id == stream and each.type == 8]
        return sum(each.window_increment for each in updates)


@pytest.fixture(scope="session")
def parse() -> Callable[[bytes], list[Any]]:
    """Bytes to hyperframe's frames."""
    return lambda data: list(_parse(data))


@pytest.fixture(scope="session")
def wire() -> type[Wire]:
    """The class of connections under test: `begun` is after the settings of the client."""
    return Wire
