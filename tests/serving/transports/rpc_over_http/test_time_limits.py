"""Clients that are silent, slow or too old are sent away in time, and patient ones are not."""

import asyncio
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame

from serving.metrics.recorder import Metrics
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Stream, Unary
from serving.transports.http.http2.frames import PREFACE
from serving.transports.http.limits import Limits
from serving.transports.rpc_over_http.server import H2Server
from serving.transports.tls import TlsFiles
from tests.serving.transports.raw_connection import RawConnection, Reply

SHORT_S = 0.1
MESSAGE = struct.pack(">BI", 0, 3) + b"\x0a\x01x"
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /tests.Echo/Say HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n"
SETTINGS = SettingsFrame(0).serialize()
HEAD = b"\x83\x86\x44\x0e/tests.Echo/Sa\x0f\x10\x10application/grpc"  # POST http, for an unknown method
HEADERS = HeadersFrame(1, HEAD, flags=["END_HEADERS"]).serialize()


async def _say(request: BytesValue, _call: Call) -> BytesValue:
    return request


async def _long(request: BytesValue, _call: Call) -> BytesValue:
    return BytesValue(value=bytes(2**18))


async def _each(requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[BytesValue]:
    async for request in requests:
        yield request


def _server(
    tls: TlsFiles | None = None, on_refused_connection: Callable[[], object] = lambda: None, **limits: Any
) -> H2Server:
    middleware = Middleware(Metrics())
    rows = (
        Unary("/tests.Echo/Say", BytesValue, _say),
        Unary("/tests.Echo/Long", BytesValue, _long),
        Stream("/tests.Echo/Each", BytesValue, _each),
    )
    return H2Server(
        [middleware.wrap(row) for row in rows],
        host="127.0.0.1",
        port=0,
        max_message_bytes=2**20,
        limits=Limits(check_interval_s=SHORT_S / 5, **limits),
        tls=tls,
        on_refused_connection=on_refused_connection,
    )


# What a client sends before it says nothing more, and the only limit that is short.
FRAMES: dict[str, Any] = {"head_s": SHORT_S, "min_body_bytes_per_s": 2**24}
BODY: dict[str, Any] = {"body_window_s": SHORT_S, "min_body_bytes_per_s": 2**20}
SILENT: dict[str, tuple[bytes, dict[str, Any]]] = {
    "nothing": (b"", {"first_bytes_s": SHORT_S}),
    "half a preface": (PREFACE[:-1], {"first_bytes_s": SHORT_S}),
    "half a head": (b"GET / HT", {"head_s": SHORT_S}),
    "half a second head": (GET + b"GET /", {"head_s": SHORT_S}),
    "keep-alive": (GET, {"keep_alive_s": SHORT_S}),
    "half a body": (POST + b"content-length: 9\r\n\r\n1", BODY),
    "half a chunk": (POST + b"transfer-encoding: chunked\r\n\r\n5\r\n1", BODY),
    "no last chunk": (POST + b"transfer-encoding: chunked\r\n\r\n1\r\n1\r\n", BODY),
    "no body": (POST + b"content-length: 9\r\n\r\n", BODY),
    "only the preface of HTTP/2": (PREFACE, {"head_s": SHORT_S}),
    "half of SETTINGS": (PREFACE + SETTINGS[:-1], {"head_s": SHORT_S}),
    "an idle HTTP/2 connection": (PREFACE + SETTINGS, {"idle_timeout_s": SHORT_S}),
    "an answered HTTP/2 call": (PREFACE + SETTINGS + HEADERS, {"idle_timeout_s": SHORT_S}),
    "no CONTINUATION": (
        PREFACE + SETTINGS + HeadersFrame(1, HEAD).serialize(),
        {"head_s": SHORT_S},
    ),
    "half a frame": (PREFACE + SETTINGS + HEADERS[:-1], FRAMES),
    "half a DATA frame": (PREFACE + SETTINGS + HEADERS + DataFrame(1, MESSAGE).serialize()[:-1], FRAMES),
    "no answer to PING": (PREFACE + SETTINGS, {"ping_after_s": SHORT_S, "ping_timeout_s": SHORT_S}),
}


@pytest.mark.parametrize("sent", SILENT)
async def test_a_silent_client_is_disconnected(sent: str) -> None:
    """In every phase of a connection."""
    first, limits = SILENT[sent]
    async with _server(**limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(first)
        await _closed(reader)
        writer.close()


@pytest.mark.parametrize(
    ("first", "piece", "limits"),
    [
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n", {"head_s": SHORT_S}),
        (b"", PREFACE, {"first_bytes_s": SHORT_S}),
        (POST + b"content-length: 99999\r\n\r\n", b"1", BODY),
        (POST + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n1\r\n", BODY),
        (PREFACE + SETTINGS + HEADERS, b"\0\0\x10\0\0", FRAMES),
        (PREFACE + SETTINGS + HeadersFrame(1, HEAD).serialize()[:-20], b"\0", FRAMES),
    ],
    ids=["head", "preface", "body", "chunks", "frame header", "header block"],
)
async def test_a_client_that_sends_byte_by_byte_is_disconnected(
    first: bytes, piece: bytes, limits: dict[str, Any]
) -> None:
    """Bytes do not extend the time for a head, and those of a body have a lowest rate."""
    async with _server(**limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(first)

        async def trickle() -> None:
            for each in piece * 10_000:
                writer.write(bytes((each,)))
                await asyncio.sleep(SHORT_S / 10)

        trickling = asyncio.create_task(trickle())
        await _closed(reader)
        trickling.cancel()
        writer.close()


async def _closed(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(10):
        try:
            while await reader.read(2**16):
                pass
        except ConnectionError:
            pass


@pytest.mark.parametrize("parts", [[], [MESSAGE[:4]], [MESSAGE[:4], MESSAGE[4:-1]]])
async def test_a_slow_call_gets_a_status_and_its_connection_lives(parts: list[bytes]) -> None:
    """Others of the same connection go on: a proxy pools many clients on it."""
    async with _server(**BODY) as server, RawConnection(server.port) as client:
        slow = await client.open("Say")
        for part in parts:
            await client.send(slow, part)
        reply = await client.reply(slow)
        assert reply.code == "DEADLINE_EXCEEDED"
        assert "the lowest rate is 1048576 bytes/s: send it faster" in reply.headers["grpc-message"]
        assert (await client.call("Say", MESSAGE)).code == "OK"
        assert client.goaways == []


async def test_a_slow_connect_call_gets_a_status() -> None:
    """504: deadline_exceeded in Connect's table."""
    async with _server(**BODY) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(POST + b"content-length: 9\r\n\r\n1")
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"deadline_exceeded" in answer
        writer.close()


async def test_a_stream_may_pause_between_messages_but_not_inside_one() -> None:
    """A camera sends an image a minute."""
    async with _server(**BODY) as server, RawConnection(server.port) as client:
        stream = await client.open("Each")
        for count in (1, 2):
            await asyncio.sleep(3 * SHORT_S)
            await client.send(stream, MESSAGE)
            reply = client.replies[stream]
            await client.read_until(partial(_has, reply, count * MESSAGE))
        await client.send(stream, MESSAGE[:-1])
        assert (await client.reply(stream)).code == "DEADLINE_EXCEEDED"


def _has(reply: Reply, body: bytes) -> bool:
    return reply.body == body


async def test_a_body_at_the_lowest_rate_is_received() -> None:
    """As long as it takes."""
    limits: dict[str, Any] = {
        "body_window_s": 2 * SHORT_S,
        "min_body_bytes_per_s": 100,
        "head_s": 2 * SHORT_S,
    }
    async with _server(**limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(POST + b"content-length: 3000\r\n\r\n" + b"\x0a\xb5\x17")
        for _ in range(2997 // 81):
            writer.write(bytes(81))
            await asyncio.sleep(SHORT_S / 5)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_client_that_answers_ping_stays() -> None:
    """However long it is silent otherwise."""
    async with _server(ping_after_s=SHORT_S, ping_timeout_s=10) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(PREFACE + SETTINGS)
        for _ in range(3):
            ping = await _frame(reader, kind=6)
            writer.write(PingFrame(0, ping, flags=["ACK"]).serialize())
        writer.close()


async def test_a_client_that_reads_a_long_answer_is_not_silent() -> None:
    """Its answer to PING waits behind what it has not read yet."""
    limits: dict[str, Any] = {"ping_after_s": SHORT_S, "ping_timeout_s": SHORT_S}
    async with _server(**limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**10)
        window = WindowUpdateFrame(0, window_increment=2**30).serialize()
        calls = b"".join(_call_long(number) for number in range(1, 2 * 64, 2))  # 16 MiB
        writer.write(PREFACE + SettingsFrame(0, settings={4: 2**30}).serialize() + window + calls)
        read_bytes = 0
        while read_bytes < 64 * 2**17:  # half: the rest is soon in the buffers of the system
            data = await reader.read(2**16)
            assert data
            read_bytes += len(data)
            await asyncio.sleep(SHORT_S / 20)
        writer.close()


async def _frame(reader: asyncio.StreamReader, kind: int) -> bytes:
    """The payload of the next frame of this type."""
    async with asyncio.timeout(10):
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == kind:
                return payload


@pytest.mark.parametrize("window", [0, 1])
async def test_an_answer_that_is_not_read_is_given_up(window: int) -> None:
    """Also if the client opens its window byte by byte. The stream is reset."""
    async with _server(unread_answer_s=2 * SHORT_S, min_answer_bytes_per_s=2**24) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(PREFACE + SettingsFrame(0, settings={4: window}).serialize() + _call_long(1))

        async def open_slowly() -> None:
            while window:
                writer.write(WindowUpdateFrame(1, window_increment=1).serialize())
                await asyncio.sleep(SHORT_S / 10)

        opening = asyncio.create_task(open_slowly())
        await _frame(reader, kind=3)  # RST_STREAM
        opening.cancel()
        writer.close()


def _call_long(number: int) -> bytes:
    """The frames of a call of Long."""
    block = HEAD.replace(b"\x0e/tests.Echo/Sa", b"\x10/tests.Echo/Long")
    head = HeadersFrame(number, block, flags=["END_HEADERS"]).serialize()
    return head + DataFrame(number, bytes(5), flags=["END_STREAM"]).serialize()


@pytest.mark.parametrize("protocol", ["http/1.1", "http/2"])
async def test_a_client_that_stops_reading_is_disconnected(protocol: str) -> None:
    """Its socket is full."""
    limits: dict[str, Any] = {
        "unread_answer_s": SHORT_S,
        "min_answer_bytes_per_s": 2**24,
        "closing_s": SHORT_S,
    }
    async with _server(**limits) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**10)
        if protocol == "http/1.1":
            writer.write((POST.replace(b"Say", b"Long") + b"content-length: 0\r\n\r\n") * 200)
        else:
            big = WindowUpdateFrame(0, window_increment=2**30).serialize()
            writer.write(PREFACE + SettingsFrame(0, settings={4: 2**30}).serialize() + big)
            writer.write(b"".join(_call_long(number) for number in range(1, 401, 2)))
        async with asyncio.timeout(10):
            while not server.open_connections:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)
            while server.open_connections:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(SHORT_S / 10)
        writer.close()


# Age.


async def test_an_old_connection_ends_gracefully() -> None:
    """GOAWAY; the running call goes on and is answered."""
    async with _server(max_connection_age_s=SHORT_S) as server, RawConnection(server.port) as client:
        stream = await client.open("Each")
        await client.read_until(lambda: bool(client.goaways))
        await client.send(stream, MESSAGE, end=True)
        reply = await client.reply(stream)
        assert (reply.code, reply.body, client.goaways[-1]) == ("OK", MESSAGE, 0)
        await client.read_until(lambda: client.is_closed)


async def test_a_call_that_outlives_the_grace_is_cut() -> None:
    """The connection closes although its call runs."""
    limits: dict[str, Any] = {"max_connection_age_s": SHORT_S, "max_connection_age_grace_s": SHORT_S}
    async with _server(**limits) as server, RawConnection(server.port) as client:
        await client.open("Each")
        with pytest.raises(AssertionError, match="closed"):
            await client.read_until(lambda: False)
        assert client.goaways


async def test_an_old_http1_connection_is_closed_between_requests() -> None:
    """The request that runs is answered."""
    async with _server(max_connection_age_s=SHORT_S) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        answer = await reader.readuntil(b"POST\n")
        assert answer.startswith(b"HTTP/1.1 405")
        await _closed(reader)
        writer.close()


async def test_ages_differ_by_up_to_a_tenth() -> None:
    """Otherwise all clients of a server that has started would return together."""
    ended_s: list[float] = []

    async def connect(port: int) -> None:
        began_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + SETTINGS)
        await _closed(reader)
        ended_s.append(time.monotonic() - began_s)
        writer.close()

    limits: dict[str, Any] = {"max_connection_age_s": 4 * SHORT_S, "connection_age_jitter": 0.5}
    async with _server(**limits) as server:
        await asyncio.gather(*[connect(server.port) for _ in range(20)])
    assert min(ended_s) > 2 * SHORT_S
    assert max(ended_s) - min(ended_s) > SHORT_S


# TLS.


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02\0\1"], ids=["nothing", "half a ClientHello"])
async def test_a_handshake_that_stalls_is_ended(first: bytes, certificates: Path) -> None:
    """Nothing knows of the connection before."""
    tls = TlsFiles(certificates / "server.pem", certificates / "server.key")
    async with _server(tls, tls_handshake_s=SHORT_S) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(first)
        await _closed(reader)
        writer.close()


async def test_a_client_that_does_not_confirm_the_end_of_tls_is_cut(certificates: Path) -> None:
    """It neither reads nor closes."""
    tls = TlsFiles(certificates / "server.pem", certificates / "server.key")
    async with _server(tls, keep_alive_s=SHORT_S, closing_s=SHORT_S) as server:
        trust = ssl.create_default_context(cafile=certificates / "ca.pem")
        _, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=trust, server_hostname="localhost"
        )
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET)
        async with asyncio.timeout(10):
            while not server.open_connections:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)
            while server.open_connections:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(SHORT_S / 10)
        writer.transport.abort()


# Number.


async def test_the_newest_connections_over_the_limit_are_refused() -> None:
    """Those that are open go on, and a place that becomes free is used."""
    refused: list[None] = []
    async with _server(on_refused_connection=lambda: refused.append(None), max_connections=2) as server:
        async with RawConnection(server.port) as first, RawConnection(server.port):
            assert (await first.call("Say", MESSAGE)).code == "OK"
            for _ in range(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                await _closed(reader)
                writer.close()
            assert (await first.call("Say", MESSAGE)).code == "OK"
        assert len(refused) == 3
        async with asyncio.timeout(10):
            while server.open_connections:  # noqa: ASYNC110 - no event is set
                await asyncio.sleep(0)
        async with RawConnection(server.port) as next_one:
            assert (await next_one.call("Say", MESSAGE)).code == "OK"
