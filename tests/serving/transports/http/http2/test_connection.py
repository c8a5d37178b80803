"""A connection and its streams: clients that follow RFC 9113, and those that do not."""

import asyncio

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, PingAckReceived, ResponseReceived, StreamEnded
from hyperframe.frame import SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transports.http.asgi import Event, Receive, Send
from serving.transports.http.http2 import frames
from serving.transports.http.http2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
)
from tests.serving.transports.http.http2.applications import (
    CONTENT_LENGTH_4,
    HEAD,
    START,
    answers,
    body_event,
    echo,
    fail,
)
from tests.serving.transports.http.http2.wire import Wire

# Valid and random bytes.


@given(st.data())
@settings(max_examples=40, deadline=None)
async def test_answers_do_not_depend_on_how_the_bytes_are_split(data: st.DataObject) -> None:
    """Requests with and without bodies, padding, trailers and long headers, split anywhere."""
    client = H2Connection(H2Configuration(header_encoding=None))
    client.initiate_connection()
    client.max_outbound_frame_size = 4096  # longer headers continue in CONTINUATION
    bodies = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
    for number, body in zip(range(1, 9, 2), bodies, strict=False):
        head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "here")]
        client.send_headers(number, [*head, ("long", "x" * data.draw(st.sampled_from([0, 0, 0, 12_000])))])
        client.send_data(number, body, pad_length=data.draw(st.none() | st.integers(0, 9)))
        trailers = data.draw(st.booleans())
        client.send_headers(number, [("a", "b")], end_stream=True) if trailers else client.end_stream(number)
        client.ping(bytes(8))
    sent = client.data_to_send()[len(frames.PREFACE) :]
    under_test = Wire(echo)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=12)))
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        under_test.feed(sent[start:end])
        if data.draw(st.booleans()):
            await under_test.settle()
    await under_test.settle()
    events = client.receive_data(b"".join(each.serialize() for each in under_test.frames))
    for number, body in zip(range(1, 9, 2), bodies, strict=False):
        ours = [event for event in events if getattr(event, "stream_id", 0) == number]
        assert [event.headers for event in ours if isinstance(event, ResponseReceived)] == [
            [(b":status", b"200")]
        ]
        assert b"".join(event.data for event in ours if isinstance(event, DataReceived)) == body
        assert [event for event in ours if isinstance(event, StreamEnded)] == ours[-1:]
    assert len([event for event in events if isinstance(event, PingAckReceived)]) == len(bodies)


raw_frames = st.builds(
    frames.frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 4), st.binary(max_size=24)
)


@given(garbage=st.lists(raw_frames | st.binary(max_size=40), max_size=8), has_settings=st.booleans())
@settings(max_examples=200, deadline=None)
async def test_random_bytes_raise_nothing(garbage: list[bytes], *, has_settings: bool) -> None:
    """Either GOAWAY is sent and the connection closes, or it stays open."""
    under_test = Wire(echo)
    if has_settings:
        await under_test.begun()
        under_test.feed(under_test.head(1, ends=False))
    for piece in garbage:
        if not under_test.transport.closed:
            under_test.feed(piece)
    await under_test.settle()
    assert under_test.transport.closed == bool(under_test.goaways) == bool(under_test.ended)
    under_test.connection.abort()
    await under_test.settle()


async def test_frames_that_need_no_reply_get_none() -> None:
    """Unknown frames, PRIORITY, GOAWAY and acknowledgements; only PING is answered, with its own bytes."""
    under_test = await Wire(echo).begun()
    quiet = (99, 0, 9, b"abc"), (PRIORITY, 0, 9, bytes(5)), (GOAWAY, 0, 0, bytes(8)), (PING, 1, 0, bytes(8))
    under_test.feed(*(frame(*each) for each in quiet), frame(SETTINGS, 1, 0), frame(PING, 0, 0, b"abcdefgh"))
    await under_test.settle()
    (pong,) = under_test.frames
    assert (pong.opaque_data, set(pong.flags)) == (b"abcdefgh", {"ACK"})


# Violations. Stream 3 has a request that is not complete; stream 1 was never opened.

PROTOCOL, SIZE, FLOW = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.FLOW_CONTROL_ERROR
CLOSED, COMPRESSION, CALM = ErrorCode.STREAM_CLOSED, ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM
PAST = (2**31 - 2**16 + 1).to_bytes(4, "big")  # grows a window of the default size beyond its limit
WIDEST = b"\0\4\x7f\xff\xff\xff"  # INITIAL_WINDOW_SIZE


def _case(name: str, code: ErrorCode, *raw: tuple[int, int, int, bytes]) -> object:
    sent = b"".join(frame(*each) for each in raw)
    return pytest.param(sent, code, id=name)


@pytest.mark.parametrize(("sent", "code"), [
    _case("DATA on an idle stream", PROTOCOL, (DATA, 0, 5, b"")),
    _case("RST_STREAM on an idle stream", PROTOCOL, (RST_STREAM, 0, 5, bytes(4))),
    _case("WINDOW_UPDATE on an idle stream", PROTOCOL, (WINDOW_UPDATE, 0, 5, b"\0\0\0\1")),
    _case("a request on an even stream", PROTOCOL, (HEADERS, 5, 4, HEAD)),
    _case("WINDOW_UPDATE of 0", PROTOCOL, (WINDOW_UPDATE, 0, 0, bytes(4))),
    _case("a window over the limit", FLOW, (WINDOW_UPDATE, 0, 0, PAST)),
    _case("a window over the limit by SETTINGS", FLOW,
          (WINDOW_UPDATE, 0, 3, b"\0\0\0\1"), (SETTINGS, 0, 0, WIDEST)),
    _case("PUSH_PROMISE", PROTOCOL, (PUSH_PROMISE, 4, 3, b"\0\0\0\2")),
    _case("a frame over 2^14", SIZE, (DATA, 0, 3, bytes(2**14 + 1))),
    _case("CONTINUATION alone", PROTOCOL, (CONTINUATION, 4, 3, b"")),
    _case("PING in a header block", PROTOCOL, (HEADERS, 0, 5, HEAD), (PING, 0, 0, bytes(8))),
    _case("an unknown frame in a header block", PROTOCOL, (HEADERS, 0, 5, HEAD), (99, 0, 5, b"")),
    _case("CONTINUATION of another stream", PROTOCOL, (HEADERS, 0, 5, HEAD), (CONTINUATION, 4, 3, b"")),
    _case("an endless header block", CALM, (HEADERS, 0, 5, HEAD), *[(CONTINUATION, 0, 5, b"")] * 1000),
    _case("invalid HPACK", COMPRESSION, (HEADERS, 5, 5, b"\xff" * 9)),
    _case("invalid HPACK in trailers", COMPRESSION, (HEADERS, 5, 3, b"\xc0")),
    _case("PING of 7 bytes", SIZE, (PING, 0, 0, bytes(7))),
    _case("PING on a stream", PROTOCOL, (PING, 0, 3, bytes(8))),
    _case("a SETTINGS acknowledgement with settings", SIZE, (SETTINGS, 1, 0, bytes(6))),
    _case("SETTINGS of 5 bytes", SIZE, (SETTINGS, 0, 0, bytes(5))),
    _case("SETTINGS on a stream", PROTOCOL, (SETTINGS, 0, 3, b"")),
    _case("RST_STREAM of 3 bytes", SIZE, (RST_STREAM, 0, 3, bytes(3))),
    _case("WINDOW_UPDATE of 5 bytes", SIZE, (WINDOW_UPDATE, 0, 3, bytes(5))),
    _case("padding longer than the frame", PROTOCOL, (DATA, frames.PADDED, 3, b"\1")),
    _case("DATA on stream 0", PROTOCOL, (DATA, 0, 0, b"1")),
    _case("HEADERS on stream 0", PROTOCOL, (HEADERS, 5, 0, HEAD)),
    _case("RST_STREAM on stream 0", PROTOCOL, (RST_STREAM, 0, 0, bytes(4))),
    _case("DATA on a lower even stream", PROTOCOL, (DATA, 0, 2, b"1")),
    _case("PRIORITY on stream 0", PROTOCOL, (PRIORITY, 0, 0, bytes(5))),
    _case("PRIORITY of 4 bytes on an idle stream", SIZE, (PRIORITY, 0, 5, bytes(4))),
    _case("GOAWAY on a stream", PROTOCOL, (GOAWAY, 0, 3, bytes(8))),
    _case("GOAWAY of 7 bytes", SIZE, (GOAWAY, 0, 0, bytes(7))),
    _case("HEADERS on a stream that was never opened, below one that was", CLOSED, (HEADERS, 5, 1, HEAD)),
    _case("a header block over 64 KiB", CALM,
          (HEADERS, 0, 5, HEAD), *[(CONTINUATION, 0, 5, bytes(2**14))] * 4),
])  # fmt: skip
async def test_a_connection_error_ends_the_connection(sent: bytes, code: ErrorCode) -> None:
    """GOAWAY has the error code of RFC 9113, and the connection closes."""
    under_test = await Wire(echo).begun()
    under_test.feed(under_test.head(3, ends=False), sent)
    await under_test.settle()
    assert [error for _, error in under_test.goaways] == [code]
    assert under_test.ended == [under_test.connection]


async def test_settings_come_first() -> None:
    """Otherwise PROTOCOL_ERROR, after our own settings: RFC 9113, section 3.4."""
    under_test = Wire(echo)
    under_test.feed(frame(PING, 0, 0, bytes(8)))
    await under_test.settle()
    assert isinstance(under_test.frames[0], SettingsFrame)
    assert under_test.goaways == [(0, PROTOCOL)]


@pytest.mark.parametrize(("sent", "code"), [
    _case("WINDOW_UPDATE of 0", PROTOCOL, (WINDOW_UPDATE, 0, 1, bytes(4))),
    _case("a window over the limit", FLOW, (WINDOW_UPDATE, 0, 1, PAST)),
    _case("more than content-length", PROTOCOL, (DATA, 0, 1, b"12345")),
    _case("less than content-length", PROTOCOL, (DATA, 1, 1, b"123")),
    _case("less than content-length, then trailers", PROTOCOL, (DATA, 0, 1, b"123"), (HEADERS, 5, 1, b"")),
    _case("trailers in the middle", PROTOCOL, (HEADERS, 4, 1, b"")),
    _case("more than the window", FLOW, *[(DATA, 0, 5, bytes(2**14))] * 65),
    _case("an invalid request", PROTOCOL, (HEADERS, 5, 7, HEAD[1:])),
    _case("no body, but content-length", PROTOCOL, (HEADERS, 5, 7, HEAD + CONTENT_LENGTH_4)),
    _case("PRIORITY of 4 bytes", SIZE, (PRIORITY, 0, 1, bytes(4))),
    _case("DATA after the end", CLOSED, (HEADERS, 5, 7, HEAD), (DATA, 0, 7, b"1")),
    _case("HEADERS after the end", CLOSED, (HEADERS, 5, 7, HEAD), (HEADERS, 5, 7, HEAD)),
    _case("DATA after RST_STREAM", CLOSED, (RST_STREAM, 0, 5, bytes(4)), (DATA, 0, 5, b"1")),
    _case("HEADERS after RST_STREAM", CLOSED, (RST_STREAM, 0, 5, bytes(4)), (HEADERS, 5, 5, HEAD)),
    _case("a pseudo-header field in trailers", PROTOCOL, (HEADERS, 5, 5, HEAD)),
    _case("upper case in trailers", PROTOCOL, (HEADERS, 5, 5, b"\0\1A\1b")),
    _case("a line feed in trailers", PROTOCOL, (HEADERS, 5, 5, b"\0\1a\1\n")),
    _case("too many trailers", CALM, (HEADERS, 5, 5, b"\x90" * 101)),
])  # fmt: skip
async def test_a_stream_error_ends_only_its_stream(sent: bytes, code: ErrorCode) -> None:
    """RST_STREAM has the error code of RFC 9113; other streams continue."""
    under_test = await Wire(echo).begun()
    under_test.feed(frame(HEADERS, frames.END_HEADERS, 1, HEAD + CONTENT_LENGTH_4))
    under_test.feed(under_test.head(5, ends=False))
    under_test.feed(sent, under_test.head(11))
    await under_test.settle()
    assert [each.error_code for each in under_test.frames if each.type == RST_STREAM] == [code]
    assert under_test.goaways == []
    assert under_test.is_over(11)


async def test_a_head_with_too_many_fields_is_answered_with_431() -> None:
    """The status can be read by clients; the rest of the request is not wanted, and others go on."""
    under_test = await Wire(echo).begun()
    under_test.feed(under_test.head(1, ends=False))
    large = HEAD + b"\x90" * 101
    under_test.feed(frame(HEADERS, 4, 3, large), frame(DATA, 1, 3, b"x"), frame(HEADERS, 5, 5, large))
    under_test.feed(frame(DATA, 1, 1, b"others"))
    await under_test.settle()
    for number in (3, 5):
        (head, *resets) = under_test.of(number)
        assert list(hpack.Decoder().decode(head.data, raw=True)) == [(b":status", b"431")]
        assert "END_STREAM" in head.flags
        assert [each.error_code for each in resets] == [ErrorCode.NO_ERROR] * (number == 3)
    assert (under_test.body(1), under_test.goaways) == (b"others", [])


async def test_frames_on_a_stream_that_the_server_has_reset_are_ignored() -> None:
    """The client may have sent them before it knew: RFC 9113, section 5.1."""
    under_test = await Wire(echo).begun()
    under_test.feed(under_test.head(1, ends=False), frame(WINDOW_UPDATE, 0, 1, bytes(4)))
    under_test.feed(frame(DATA, 0, 1, b"1"), frames.window_update(1, 1), frame(HEADERS, 5, 1, HEAD))
    under_test.feed(frames.reset(1, ErrorCode.CANCEL), under_test.head(3))
    await under_test.settle()
    assert (under_test.resets(1), under_test.goaways) == ([PROTOCOL], [])
    assert under_test.is_over(3)


# Ends.


class Held:
    """An application that waits until `may_end`, and counts starts and cancellations."""

    def __init__(self, *, is_stubborn: bool = False) -> None:
        self.may_end = asyncio.Event()
        self.begun = self.cancelled = 0
        self._is_stubborn = is_stubborn

    async def __call__(self, _scope: Event, _receive: Receive, send: Send) -> None:
        """Answer after `may_end`."""
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if not self._is_stubborn:
                raise
            await self.may_end.wait()
            with pytest.raises(OSError, match="gone"):
                await send(START)
            return
        await send(START)
        await send(body_event(b"held"))


async def test_a_stream_counts_until_it_is_reset_and_further_input_waits_for_its_task() -> None:
    """A client may open a stream for each one that it has reset; but tasks that do not end are bounded."""
    held = Held(is_stubborn=True)
    under_test = Wire(held)
    await under_test.settle()
    most = under_test.frames[0].settings[SettingsFrame.MAX_CONCURRENT_STREAMS]
    await under_test.begun()
    under_test.is_held = True
    for first in range(1, 8 * most, 32):
        numbers = range(first, first + 32, 2)
        under_test.feed(*map(under_test.head, numbers))
        await under_test.settle()
        under_test.feed(*(frames.reset(number, ErrorCode.CANCEL) for number in numbers))
        await under_test.settle()
        if not under_test.transport.reads:
            break
    assert most <= held.cancelled <= held.begun <= 2 * most
    under_test.feed(under_test.head(first + 32))
    await under_test.settle()
    assert not under_test.is_over(first + 32)
    held.may_end.set()
    under_test.is_held = False
    await under_test.settle()
    assert under_test.is_over(first + 32)
    assert [each for each in under_test.frames if each.type == RST_STREAM] == under_test.goaways == []


async def test_more_streams_than_settings_allow_are_refused() -> None:
    """REFUSED_STREAM; a stream that is reset makes room at once."""
    held = Held()
    under_test = Wire(held)
    await under_test.settle()
    most = under_test.frames[0].settings[SettingsFrame.MAX_CONCURRENT_STREAMS]
    await under_test.begun()
    under_test.feed(*(under_test.head(number) for number in range(1, 2 * most + 2, 2)))
    under_test.feed(frames.reset(1, ErrorCode.CANCEL), under_test.head(2 * most + 3))
    await under_test.settle()
    assert under_test.resets(2 * most + 1) == [ErrorCode.REFUSED_STREAM]
    held.may_end.set()
    await under_test.settle()
    assert under_test.is_over(2 * most + 3)
    assert (under_test.of(1), under_test.goaways) == ([], [])


async def test_a_stream_counts_until_its_answer_is_sent_although_its_task_runs() -> None:
    """grpc-go opens the next stream as soon as it has an answer; the task may still be returning."""
    held = Held()

    async def answer_then_wait(scope: Event, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await send(START)
            await send(body_event(b"done"))
        await held(scope, receive, send)

    under_test = Wire(answer_then_wait)
    await under_test.settle()
    most = under_test.frames[0].settings[SettingsFrame.MAX_CONCURRENT_STREAMS]
    await under_test.begun()
    answered, open_ones = range(1, most, 2), range(most + 1, 3 * most, 2)
    under_test.feed(*(frame(HEADERS, 5, number, b"\x83" + HEAD[1:]) for number in answered))
    await under_test.settle()
    assert all(under_test.is_over(number) for number in answered)
    under_test.feed(*map(under_test.head, open_ones))
    await under_test.settle()
    assert len(open_ones) == most
    assert held.begun == len(answered) + most
    under_test.transport.abort()
    await under_test.settle()


GRACEFUL = (2**31 - 1, ErrorCode.NO_ERROR)


async def test_a_graceful_close_lets_open_streams_end_and_accepts_no_new_ones() -> None:
    """The first GOAWAY is sent at once, the second when PING is answered: streams in between are handled."""
    held = Held()
    under_test = await Wire(held).begun()
    under_test.feed(under_test.head(1, ends=False))
    await under_test.settle()
    under_test.connection.close_when_idle()
    under_test.connection.close_when_idle()
    under_test.feed(under_test.head(3))
    await under_test.settle()
    assert under_test.goaways == [GRACEFUL]
    (ping,) = (each for each in under_test.frames if each.type == PING)
    for _ in range(2):
        under_test.feed(frames.ping(ping.opaque_data, frames.ACK))
    under_test.feed(under_test.head(5, ends=False), frame(DATA, 0, 5, b"1"), under_test.head(5))
    under_test.feed(frames.reset(5, ErrorCode.CANCEL), frames.window_update(5, 1), frame(DATA, 1, 1, b"1"))
    await under_test.settle()
    assert under_test.goaways == [GRACEFUL, (3, ErrorCode.NO_ERROR)]
    assert (held.begun, under_test.transport.closed) == (2, False)
    held.may_end.set()
    await under_test.settle()
    assert [(under_test.body(number), under_test.is_over(number)) for number in (1, 3)] == [
        (b"held", True)
    ] * 2
    assert (len(under_test.goaways), under_test.of(5)) == (2, [])
    assert under_test.ended == [under_test.connection]


async def test_a_graceful_close_without_streams_closes_when_ping_is_answered_or_after_a_moment() -> None:
    """After the second GOAWAY."""
    for answers_ping in (True, False):
        under_test = await Wire(echo).begun()
        under_test.connection.close_when_idle()
        await under_test.settle()
        (ping,) = (each for each in under_test.frames if each.type == PING)
        if answers_ping:
            under_test.feed(frames.ping(ping.opaque_data, frames.ACK))
            await under_test.settle()
        async with asyncio.timeout(10):
            await under_test.closed.wait()
        await under_test.settle()
        assert under_test.goaways == [GRACEFUL, (0, ErrorCode.NO_ERROR)]


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_a_client_that_disconnects_cancels_its_applications(how: str) -> None:
    """Also one that has not started: it begins, so that it can count the request. Nothing is sent."""
    held = Held()
    under_test = await Wire(held).begun()
    under_test.feed(under_test.head(1))
    await under_test.settle()
    under_test.feed(under_test.head(3))
    if how == "reset":
        under_test.feed(frames.reset(1, ErrorCode.CANCEL), frames.reset(3, ErrorCode.CANCEL))
    else:
        under_test.transport.abort()
    await under_test.settle()
    assert (held.begun, held.cancelled) == (2, 2)
    assert under_test.frames == []


async def test_an_application_that_fails_ends_only_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets INTERNAL_ERROR, the log one line."""

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await (fail() if scope["method"] == "POST" else echo(scope, receive, send))

    under_test = await Wire(app).begun()
    under_test.feed(frame(HEADERS, 5, 1, b"\x83\x86\x84"), under_test.head(3))
    await under_test.settle()
    assert under_test.resets(1) == [ErrorCode.INTERNAL_ERROR]
    assert under_test.is_over(3)
    assert [(each.message, each.levelname) for each in caplog.records] == [("application_failed", "ERROR")]


async def test_an_answer_before_the_end_of_its_request_is_followed_by_a_reset() -> None:
    """NO_ERROR: the rest of the request is not wanted. Sending it is not an error."""
    under_test = await Wire(answers(START, body_event(b"enough"))).begun()
    under_test.feed(under_test.head(1, ends=False))
    await under_test.settle()
    under_test.feed(frame(DATA, frames.END_STREAM, 1, b"more"))
    await under_test.settle()
    assert [each.type for each in under_test.of(1)] == [HEADERS, DATA, RST_STREAM]
    assert under_test.is_over(1)
    assert (under_test.resets(1), under_test.goaways) == ([ErrorCode.NO_ERROR], [])


async def test_receive_after_the_answer_returns_disconnect() -> None:
    """http.disconnect, as ASGI specifies."""
    got: list[str] = []

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        got.append((await receive())["type"])

    under_test = await Wire(app).begun()
    under_test.feed(under_test.head(1))
    await under_test.settle()
    under_test.transport.abort()
    await under_test.settle()
    assert got == ["http.disconnect"]
