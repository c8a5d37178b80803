"""Streams: flow control in both directions, and a full socket."""

import asyncio
import logging
from typing import Any

import pytest
from h2.connection import H2Connection
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transports.http.asgi import Event, Receive, Send
from serving.transports.http.http2 import connection, frames, stream
from serving.transports.http.http2.frames import DATA, HEADERS, PING, SETTINGS, ErrorCode, Setting, frame
from serving.transports.http.limits import Limits
from tests.serving.transports.http.http2.applications import (
    FORMS,
    HEAD,
    MIB,
    START,
    answers,
    body_event,
    echo,
    fail,
    read,
)
from tests.serving.transports.http.http2.wire import Wire

# Windows.


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30_000)), max_size=8))
@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("form", FORMS)
async def test_an_answer_is_sent_exactly_as_the_windows_allow(
    form: str, grants: list[tuple[int, int]]
) -> None:
    """The windows of the stream and the connection, and SETTINGS, which can make the stream's negative."""
    body = bytes(range(256)) * 400
    initial = of_connection = 2**16 - 1
    of_stream, most = initial, 0
    under_test = await Wire(FORMS[form](body)).begun()
    under_test.feed(under_test.head(1))
    await under_test.settle()
    for kind, size in [*grants, (1, 2**18), (0, 2**18)]:
        most = max(most, min(of_stream, of_connection))
        assert len(under_test.body(1)) == min(most, len(body))
        if kind == 0:
            of_connection += size
            under_test.feed(frames.window_update(0, size))
        elif kind == 1:
            of_stream += size
            under_test.feed(frames.window_update(1, size))
        else:
            of_stream += size - initial
            initial = size
            under_test.feed(frames.settings({Setting.INITIAL_WINDOW_SIZE: size}))
        await under_test.settle()
    assert under_test.body(1) == body
    assert under_test.is_over(1)
    assert under_test.of(1)[0].type == HEADERS
    assert max(each.body_len for each in under_test.of(1)) <= 2**14


async def test_a_request_larger_than_the_windows_is_received_completely() -> None:
    """A client that respects the windows sends 10 MiB with much padding, while the application reads."""
    got: list[int] = []

    async def count(_scope: Event, receive: Receive, send: Send) -> None:
        got.append(len(await read(receive)))
        await send(START)
        await send(body_event(b""))

    client, under_test = H2Connection(), Wire(count)
    client.initiate_connection()
    under_test.feed(client.data_to_send()[len(frames.PREFACE) :])
    client.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "here")])
    left = 10 * MIB
    while left:
        await under_test.settle()
        client.receive_data(b"".join(each.serialize() for each in under_test.frames))
        under_test.frames.clear()
        while left and (room := min(client.local_flow_control_window(1), 2**14)) > 256:
            size = min(left, room - 256)
            client.send_data(1, bytes(size), pad_length=255)
            left -= size
        sent = client.data_to_send()
        assert sent, "the windows were not opened"
        under_test.feed(sent)
    under_test.feed(frame(DATA, frames.END_STREAM, 1))
    await under_test.settle()
    assert got == [10 * MIB]
    assert under_test.is_over(1)


async def test_the_unread_part_of_a_request_returns_to_the_window_after_the_answer() -> None:
    """Otherwise these streams would use up the connection's window twice."""
    under_test = await Wire(answers(START, body_event(b"no"))).begun()
    data = stream.WINDOW_BYTES // 2**14
    for number in range(1, 4 * connection.WINDOW_BYTES // stream.WINDOW_BYTES, 2):
        under_test.feed(under_test.head(number, ends=False), *[frame(DATA, 0, number, bytes(2**14))] * data)
        await under_test.settle()
    assert under_test.goaways == []
    assert connection.WINDOW_BYTES <= under_test.credit(0) <= 2 * connection.WINDOW_BYTES


async def test_data_beyond_the_window_of_a_stream_returns_to_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than the connection's window is sent on streams that accept nothing: the connection stays open."""
    monkeypatch.setattr("serving.transports.http.http2.stream.WINDOW_BYTES", 0)
    monkeypatch.setattr("serving.transports.http.http2.connection.WINDOW_BYTES", 2**20)
    under_test = await Wire(echo).begun()
    for number in range(1, 4 * 2**20 // 2**14, 2):
        under_test.feed(under_test.head(number, ends=False), frame(DATA, 0, number, bytes(2**14)))
        await under_test.settle()
    assert under_test.resets(1) == [ErrorCode.FLOW_CONTROL_ERROR]
    assert under_test.goaways == []


async def test_more_than_the_window_of_the_connection_ends_it() -> None:
    """Even if no stream exceeds its own."""
    started = asyncio.Event()

    async def wait(*_: Any) -> None:
        await started.wait()

    under_test = await Wire(wait).begun()
    last, data = 2 * connection.WINDOW_BYTES // stream.WINDOW_BYTES + 1, stream.WINDOW_BYTES // 2**14
    for number in range(1, last, 2):
        under_test.feed(under_test.head(number, ends=False), *[frame(DATA, 0, number, bytes(2**14))] * data)
    await under_test.settle()
    assert under_test.goaways == []
    under_test.feed(under_test.head(last, ends=False), frame(DATA, 0, last, b"1"))
    await under_test.settle()
    assert under_test.goaways == [(last, ErrorCode.FLOW_CONTROL_ERROR)]


# A socket that is full.


@pytest.mark.parametrize("body", [b"", b"hello"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_full_socket_delays_answers(form: str, body: bytes) -> None:
    """No answer is complete before the socket has room again."""
    under_test = await Wire(FORMS[form](body)).begun()
    under_test.connection.pause_writing()
    under_test.feed(under_test.head(1))
    await under_test.settle()
    assert not under_test.is_over(1)
    under_test.connection.resume_writing()
    await under_test.settle()
    assert (under_test.body(1), under_test.is_over(1)) == (body, True)


@pytest.mark.parametrize("flood", ["PING", "SETTINGS", "malformed", "empty answers", "failures"])
async def test_a_flood_of_unread_replies_closes_the_connection(
    flood: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Long before 20,000 replies wait in memory."""
    caplog.set_level(logging.CRITICAL)
    under_test = await Wire(fail if flood == "failures" else answers(START, body_event(b""))).begun()
    under_test.connection.pause_writing()
    each = {"PING": frame(PING, 0, 0, bytes(8)), "SETTINGS": frame(SETTINGS, 0, 0)}.get(flood)
    head = HEAD[1:] if flood == "malformed" else HEAD
    for number in range(1, 40_000, 2):
        under_test.feed(each or frame(HEADERS, 5, number, head))
        if number % 2000 == 1:
            await under_test.settle()
        if under_test.transport.closed:
            break
    assert under_test.transport.closed
    await under_test.settle()


async def test_closing_ends_even_if_the_client_does_not_read() -> None:
    """Otherwise the client could keep the socket and its memory forever."""
    under_test = await Wire(echo, Limits(closing_s=0.0)).begun()
    under_test.transport.is_stuck = True
    under_test.connection.pause_writing()
    under_test.feed(frame(PING, 0, 0, bytes(8)) * 20_000)
    async with asyncio.timeout(10):
        while not under_test.ended:
            await under_test.settle()


async def test_a_client_that_reads_nothing_for_long_is_disconnected() -> None:
    """The application gets the OSError of a disconnected client."""
    raised: list[OSError] = []

    async def app(_scope: Event, _receive: Receive, send: Send) -> None:
        await send(START)
        try:
            await send(body_event(bytes(2**17)))
        except OSError as error:
            raised.append(error)

    under_test = await Wire(app, Limits(unread_answer_s=0.0, min_answer_bytes_per_s=2**40)).begun()
    under_test.feed(under_test.head(1))
    async with asyncio.timeout(10):
        while not under_test.ended:
            await under_test.settle()
    assert len(raised) == 1


@pytest.mark.parametrize(
    "first",
    [
        "ends",
        "has no window",
        "has a small window",
        "is reset",
    ],
)
async def test_room_that_the_first_waiting_stream_does_not_use_goes_to_the_next(first: str) -> None:
    """Whatever happens to the first: one WINDOW_UPDATE of the connection is enough for both."""
    under_test = await Wire(answers(START, body_event(bytes(2**17)))).begun()
    more = {"has no window": 0, "has a small window": 9}.get(first, 2**17)
    under_test.feed(under_test.head(1), *[frames.window_update(1, more)] * bool(more))
    under_test.feed(under_test.head(3))
    await under_test.settle()
    assert (len(under_test.body(1)), under_test.body(3)) == (2**16 - 1, b"")
    reset = frames.reset(1, ErrorCode.CANCEL) if first == "is reset" else b""
    under_test.feed(frames.window_update(0, 2**18), reset)
    await under_test.settle()
    assert len(under_test.body(3)) == 2**16 - 1
