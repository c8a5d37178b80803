"""The right protocol gets all bytes of a connection, even if the first ones are split."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.limits import Limits
from serving.transports.http.protocol_detection import ProtocolDetector

FIRST_OF_HTTP1 = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/1.1\r\n\r\n",
    b"\x16\x03",
]


class Recorder(asyncio.Protocol):
    """A protocol that records what it receives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.transport: asyncio.BaseTransport | None = None
        self.received = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Record the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Record the bytes."""
        assert self.transport is not None
        assert data
        self.received += data

    def connection_lost(self, _error: Exception | None) -> None:
        """Record the end."""
        self.lost.set()


class FakeTransport(asyncio.Transport):
    """A fake socket that is handed from one protocol to another."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.aborted = self.closed = False

    def close(self) -> None:
        """Record the call."""
        self.closed = True

    def abort(self) -> None:
        """Record the call."""
        self.aborted = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Record the bytes."""
        self.protocol = protocol


def _detector(made: list[Recorder], first_bytes_s: float = 60.0) -> ProtocolDetector:
    def make(name: str) -> Callable[[], Recorder]:
        def protocol() -> Recorder:
            made.append(Recorder(name))
            return made[-1]

        return protocol

    return ProtocolDetector(make("2"), make("1"), limits=Limits(first_bytes_s=first_bytes_s))


@given(st.data())
async def test_detection_does_not_depend_on_how_the_bytes_are_split(data: st.DataObject) -> None:
    """HTTP/2 gets the bytes after its preface, HTTP/1.1 all of them; the other protocol is never created."""
    is_http2 = data.draw(st.booleans())
    rest = data.draw(st.binary(max_size=30))
    first = PREFACE if is_http2 else data.draw(st.sampled_from(FIRST_OF_HTTP1))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(first + rest)), max_size=30)))
    made: list[Recorder] = []
    transport = FakeTransport()
    transport.protocol = detector = _detector(made)
    detector.connection_made(transport)
    for start, end in zip([0, *cuts], [*cuts, None], strict=True):
        if piece := (first + rest)[start:end]:
            transport.protocol.data_received(piece)
    (chosen,) = made
    assert chosen.transport is transport
    assert (chosen.name, chosen.received) == (("2", rest) if is_http2 else ("1", first + rest))


@pytest.mark.parametrize("length", range(1, len(PREFACE)))
async def test_bytes_that_differ_late_from_the_preface_are_not_http2(length: int) -> None:
    """Nothing is decided while both are possible; the first different byte decides."""
    made: list[Recorder] = []
    transport = FakeTransport()
    detector = _detector(made)
    detector.connection_made(transport)
    detector.data_received(PREFACE[:length])
    assert made == []
    detector.data_received(b"?")
    assert [(each.name, each.received) for each in made] == [("1", PREFACE[:length] + b"?")]


@asynccontextmanager
async def _listening(
    made: list[Recorder], first_bytes_s: float = 60.0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of a real socket."""
    server = await asyncio.get_running_loop().create_server(
        lambda: _detector(made, first_bytes_s), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()
        server.close()
        await server.wait_closed()


async def test_a_real_socket_is_handed_over() -> None:
    """With bytes that come with the preface, bytes that come later, and the end."""
    made: list[Recorder] = []
    async with _listening(made) as (reader, writer):
        writer.write(PREFACE + b"ab")
        writer.write(b"cd")
        writer.write_eof()
        await reader.read()
        (chosen,) = made
        await chosen.lost.wait()
        assert chosen.received == b"abcd"


@pytest.mark.parametrize("said", [b"", PREFACE[:-1]])
async def test_a_client_that_sends_too_little_is_disconnected(
    said: bytes,
) -> None:
    """After a time limit, without creating a protocol."""
    made: list[Recorder] = []
    async with _listening(made, first_bytes_s=0.05) as (reader, writer):
        writer.write(said)
        assert await reader.read() == b""
    assert made == []


async def test_a_client_whose_protocol_is_detected_may_be_silent() -> None:
    """The time limit applies only to the first bytes."""
    transport, passed = FakeTransport(), asyncio.Event()
    detector = _detector([], first_bytes_s=0.0)
    detector.connection_made(transport)
    detector.data_received(PREFACE)
    asyncio.get_running_loop().call_later(0.01, passed.set)  # after the time limit
    await passed.wait()
    assert not transport.aborted


async def test_a_client_that_disconnects_first_leaves_nothing_behind() -> None:
    """No protocol is created, and no timer is left."""
    made: list[Recorder] = []
    transport, passed = FakeTransport(), asyncio.Event()
    detector = _detector(made, first_bytes_s=0.0)
    detector.connection_made(transport)
    detector.connection_lost(None)
    asyncio.get_running_loop().call_later(0.01, passed.set)  # after the time limit
    await passed.wait()
    assert (made, transport.aborted) == ([], False)


@pytest.mark.parametrize("how", ["spoke", "went"])
async def test_on_closed_is_called_once(how: str) -> None:
    """A server keeps the detector until then, to close it."""
    ended: list[ProtocolDetector] = []
    detector = ProtocolDetector(lambda: Recorder("2"), lambda: Recorder("1"), on_closed=ended.append)
    detector.connection_made(FakeTransport())
    assert ended == []
    if how == "spoke":
        detector.data_received(PREFACE)
    else:
        detector.connection_lost(None)
    assert ended == [detector]


async def test_a_graceful_close_disconnects_a_silent_client() -> None:
    """There is nothing to wait for."""
    transport = FakeTransport()
    detector = _detector([])
    detector.connection_made(transport)
    detector.close_when_idle()
    assert transport.closed
    detector.connection_lost(None)
