"""A server and a client of HTTP/2 over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.transports.http.asgi import App
from serving.transports.http.busy_poll import BusyPoll
from serving.transports.http.http1 import Http1Connection
from serving.transports.http.http2 import Http2Connection, frames
from serving.transports.http.protocol_detection import ProtocolDetector
from serving.transports.http.rounds import Rounds

OPENING = frames.PREFACE + frames.settings({})


@asynccontextmanager
async def open_server(app: App) -> AsyncIterator[int]:
    """Serve an application; return the port. At the end, all connections are cut."""
    connections: set[Http2Connection | Http1Connection] = set()
    all_closed = asyncio.Event()
    rounds, busy_poll = Rounds(), BusyPoll()

    def on_closed(closed: Http2Connection | Http1Connection) -> None:
        connections.discard(closed)
        if not connections:
            all_closed.set()

    def http1() -> Http1Connection:
        opened = Http1Connection(app, on_closed, rounds=rounds)
        connections.add(opened)
        return opened

    def http2() -> Http2Connection:
        opened = Http2Connection(app, on_closed, busy_poll, rounds=rounds)
        connections.add(opened)
        return opened

    server = await asyncio.get_running_loop().create_server(
        lambda: ProtocolDetector(http2, http1, rounds=rounds), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]
        all_closed.clear()
        for each in tuple(connections):
            each.abort()
        if connections:
            await all_closed.wait()


class Client:
    """A client that sends raw frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        """Send bytes."""
        self.writer.write(b"".join(pieces))

    async def next_frame(self) -> tuple[int, int, int, bytes]:
        """Return type, flags, stream and payload.

        Raises:
            IncompleteReadError: the server has closed the connection.
        """
        high, low, kind, flags, stream = frames.HEAD.unpack(await self.reader.readexactly(frames.HEAD.size))
        return kind, flags, stream, await self.reader.readexactly(high << 16 | low)

    async def end_of(self, number: int) -> None:
        """Read until the answer of a stream is complete."""
        while True:
            _, flags, stream, _ = await self.next_frame()
            if stream == number and flags & frames.END_STREAM:
                return

    async def goaway(self) -> int:
        """Read until GOAWAY; return its error code."""
        while True:
            kind, _, _, payload = await self.next_frame()
            if kind == frames.GOAWAY:
                return int.from_bytes(payload[4:8])


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    """Connect, and send the preface and SETTINGS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(OPENING)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
