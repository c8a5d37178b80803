"""gRPC over HTTP/2 as bytes: bodies split anywhere, timeouts, metadata, messages of failures."""

import base64
import gzip
import math
import time
from urllib.parse import unquote

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from serving.rpc.handlers import Failure
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status
from serving.transports.rpc_over_http.grpc_framing import (
    PREFIX,
    Framed,
    MessageReader,
    Metadata,
    accepts_gzip,
    failure_trailers,
    frame,
    is_grpc,
    parse_timeout_s,
    read_timeout,
)

LIMIT = 1000

messages = st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=6)


@st.composite
def cut(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """A body in pieces, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def _plain(message: Framed) -> bytes:
    return gzip.decompress(message.data) if message.is_compressed else message.data


@given(st.data())
def test_messages_do_not_depend_on_how_the_body_is_split(data: st.DataObject) -> None:
    """Plain and compressed ones, in order, each as soon as its last byte has arrived."""
    sent = data.draw(messages)
    body = b"".join(frame(message, compressed=compressed) for message, compressed in sent)
    frames = MessageReader(LIMIT)
    received = [message for chunk in data.draw(cut(body)) for message in frames.feed(chunk)]
    frames.close()
    assert [_plain(each) for each in received] == [message for message, _ in sent]
    assert [each.is_compressed for each in received] == [compressed for _, compressed in sent]


@given(st.data())
def test_a_body_that_ends_inside_a_message_is_an_error(data: st.DataObject) -> None:
    """At any position; complete messages are returned first."""
    sent = data.draw(messages.filter(bool))
    bodies = [frame(message, compressed=compressed) for message, compressed in sent]
    missing = data.draw(st.integers(1, len(bodies[-1]) - 1))
    frames = MessageReader(LIMIT)
    received = frames.feed(b"".join(bodies)[:-missing])
    assert [_plain(each) for each in received] == [message for message, _ in sent[:-1]]
    with pytest.raises(Failure) as caught:
        frames.close()
    assert caught.value.status.code is Code.INTERNAL


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_random_bytes_raise_failures_only(chunks: list[bytes]) -> None:
    """No message is over the limit."""
    frames, received, code = MessageReader(LIMIT), list[Framed](), None
    try:
        for chunk in chunks:
            received += frames.feed(chunk)
        frames.close()
    except Failure as failure:
        code = failure.status.code
    assert code in {None, Code.INTERNAL, Code.RESOURCE_EXHAUSTED}
    assert all(len(message.data) <= LIMIT for message in received)


def test_the_limit_is_exact() -> None:
    """The error has both numbers, and is raised before the message arrives."""
    assert [each.data for each in MessageReader(LIMIT).feed(frame(bytes(LIMIT)))] == [bytes(LIMIT)]
    with pytest.raises(Failure, match=f"a message has {LIMIT + 1} bytes, limit is {LIMIT} bytes"):
        list(MessageReader(LIMIT).feed(PREFIX.pack(0, LIMIT + 1)))


def test_messages_are_cut_out_one_at_a_time() -> None:
    """A chunk of many is not turned into as many objects before the first is used."""
    messages = MessageReader(LIMIT).feed(frame(b"1") + frame(b"2") + PREFIX.pack(7, 0))
    assert [next(messages).data, next(messages).data] == [b"1", b"2"]
    with pytest.raises(Failure, match="begins with 7"):
        next(messages)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"2H", 7200), (b"3M", 180), (b"7S", 7), (b"100m", 0.1), (b"5u", 5e-6), (b"99999999n", 0.099999999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    """All units of the specification."""
    assert parse_timeout_s(text) == pytest.approx(seconds)


@given(st.binary(max_size=12))
def test_any_timeout_is_seconds_or_a_failure(text: bytes) -> None:
    """Never negative or infinite, at most eight digits."""
    try:
        seconds = parse_timeout_s(text)
    except Failure:
        return
    assert 0 <= seconds < math.inf
    assert len(text) <= 9


@pytest.mark.parametrize(("timeout", "seconds"), [(b"30S", 30), (b"100m", 0.1), (b"1n", 0)])
def test_the_deadline_of_a_call_is_its_timeout(timeout: bytes, seconds: float) -> None:
    """On the clock of time.monotonic(); infinite without a timeout."""
    before_s = time.monotonic()
    call = Call({})
    read_timeout({}, call)
    assert call.deadline_s == math.inf
    read_timeout({b"grpc-timeout": timeout}, call)
    deadline_s = call.deadline_s
    assert before_s <= deadline_s - seconds + 1e-6 <= time.monotonic() + 1e-6


def test_metadata_is_the_text_of_the_client() -> None:
    """Without headers of HTTP and gRPC, and without binary metadata."""
    metadata = Metadata(
        {b"te": b"trailers", b"grpc-timeout": b"1S", b"x-bin": b"AAE", b"user-agent": b"u", b"x-id": b"7\xff"}
    )
    assert dict(metadata) == {"user-agent": "u", "x-id": "7�"}
    assert (len(metadata), metadata.get("te", "-"), metadata.get("x-bin", "-")) == (2, "-", "-")
    assert metadata.get("x-id") == metadata["x-id"] == "7�"
    with pytest.raises(KeyError):
        metadata["te"]


@pytest.mark.parametrize(
    "text", ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=x"]
)
def test_content_types_of_grpc(text: str) -> None:
    """Media types are case-insensitive, and can have parameters."""
    assert is_grpc(text.encode())


@pytest.mark.parametrize(
    "text", ["", "application/grpc-web", "application/grpc-web+proto", "application/json"]
)
def test_content_types_of_others(text: str) -> None:
    """gRPC-Web is another protocol."""
    assert not is_grpc(text.encode())


def test_answers_use_gzip_if_the_client_sends_and_accepts_it() -> None:
    """A client that does not compress need not decompress."""
    sent = {b"grpc-encoding": b"gzip"}
    assert accepts_gzip({**sent, b"grpc-accept-encoding": b"identity, deflate, gzip"})
    assert not accepts_gzip({**sent, b"grpc-accept-encoding": b"identity,deflate"})
    assert not accepts_gzip(sent)
    assert not accepts_gzip({b"grpc-accept-encoding": b"gzip"})


@given(st.text() | st.text(" %a"))
def test_any_failure_message_fits_into_headers_and_can_be_decoded(text: str) -> None:
    """Printable ASCII without spaces at its ends; percent-decoded it is the message, or its beginning."""
    status = Status(Code.NOT_FOUND, "UNKNOWN_MODEL", text)
    trailers = dict(failure_trailers(status, "id-7"))
    assert trailers[b"grpc-status"] == b"5"
    assert trailers[b"x-request-id"] == b"id-7"
    assert all(0x20 <= byte < 0x7F for byte in trailers[b"grpc-message"])
    assert trailers[b"grpc-message"] == trailers[b"grpc-message"].strip()
    assert len(trailers[b"grpc-message"]) < 8192
    received = unquote(trailers[b"grpc-message"].decode())
    assert received == text or (len(text) > len(received) - 1 and text.startswith(received.removesuffix("…")))
    details = trailers[b"grpc-status-details-bin"]
    assert b"=" not in details
    decoded = status_pb2.Status.FromString(base64.b64decode(details + b"=" * (-len(details) % 4)))
    assert (decoded.code, decoded.message) == (5, received)
