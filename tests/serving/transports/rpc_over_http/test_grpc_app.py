"""One call over a fake ASGI server: for cases that real clients cannot produce."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from serving.rpc.handlers import AnswerGroups, Failure, Read, StreamHandler, UnaryHandler, message_of
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status
from serving.transports.http.asgi import EXTENSIONS, Event, Receive, Send
from serving.transports.rpc_over_http.grpc_app import GrpcApp
from serving.transports.rpc_over_http.grpc_framing import frame
from tests.serving.counting_turns import CountingTurns, Loop

METHOD = "/tests.Echo/Say"
HEADERS = {"content-type": "application/grpc", "te": "trailers"}


class FakeServer:
    """A fake ASGI server: delivers prepared events, and records what the application sends."""

    def __init__(self, *events: Event, send_fails: Exception | None = None) -> None:
        self._events = list(events)
        self._send_fails = send_fails
        self.sent: list[Event] = []

    async def receive(self) -> Event:
        """The next event."""
        return self._events.pop(0)

    async def send(self, event: Event) -> None:
        """Record the event, or fail."""
        if self._send_fails:
            raise self._send_fails
        self.sent.append(dict(event))

    @property
    def left(self) -> int:
        """The number of events that the application has not received."""
        return len(self._events)

    @property
    def types(self) -> Sequence[str]:
        """The types of the sent events, without their prefix."""
        return [event["type"].rpartition(".")[2] for event in self.sent]


async def _echo(read: bytes | Read, call: Call) -> bytes:
    call.request_id = "id-7"
    return await message_of(read)


async def _call(server: FakeServer, app: GrpcApp | None = None, **scope: Any) -> None:
    headers = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
    usual = {"type": "http", "path": METHOD, "headers": headers, "extensions": EXTENSIONS}
    app = app or GrpcApp([UnaryHandler(METHOD, _echo)], max_message_bytes=100)
    await app(usual | scope, server.receive, server.send)


def _request(body: bytes, *, more: bool = False) -> Event:
    return {"type": "http.request", "body": body, "more_body": more}


def _requests(chunks: list[bytes]) -> list[Event]:
    return [_request(chunk, more=True) for chunk in chunks[:-1]] + [_request(chunks[-1])]


@pytest.mark.parametrize(
    "chunks",
    [[frame(b"hello")], [frame(b"hello"), b""], [b"", frame(b"hello")], [frame(b"hello")[:7], b"llo"]],
)
async def test_a_message_may_come_in_any_chunks(chunks: list[bytes]) -> None:
    """Many clients end their request with a separate, empty one."""
    server = FakeServer(*_requests(chunks))
    await _call(server)
    assert server.types == ["answer"]
    assert server.sent[0]["body"] == frame(b"hello")
    assert dict(server.sent[0]["trailers"]) == {b"grpc-status": b"0", b"x-request-id": b"id-7"}


@pytest.mark.parametrize("chunks", [[b""], [frame(b"1") * 2], [frame(b"1"), frame(b"2")]])
async def test_a_unary_call_has_exactly_one_message(chunks: list[bytes]) -> None:
    """Others are UNIMPLEMENTED, as gRPC's doc/statuscodes.md says of a violated cardinality."""
    server = FakeServer(*_requests(chunks))
    await _call(server)
    ending = dict(server.sent[0]["headers"])
    assert ending[b"grpc-status"] == b"12"
    assert b"exactly 1" in ending[b"grpc-message"]


async def test_a_call_is_admitted_before_its_message_is_read() -> None:
    """What has arrived is received before the answer, for clients that would not read it otherwise."""

    async def refuse(_read: bytes | Read, _call: Call) -> bytes:
        raise Failure(Status(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "full"))

    server = FakeServer(_request(frame(b"hello")[:7], more=True), _request(b"never received"))
    await _call(server, GrpcApp([UnaryHandler(METHOD, refuse)], max_message_bytes=100))
    assert dict(server.sent[0]["headers"])[b"grpc-status"] == b"8"
    assert server.left == 1


@pytest.mark.parametrize(("count", "least_turns"), [(10, 0), (1000, 10)])
async def test_a_chunk_of_many_messages_takes_many_turns(count: int, least_turns: int) -> None:
    """A megabyte holds 200,000 of them: other calls go on in between, though nothing in this one waits."""
    received: list[bytes] = []

    async def answer(messages: AsyncIterator[bytes], _call: Call) -> AnswerGroups:
        async for message in messages:
            received.append(message)
            yield (message,)

    server = FakeServer(_request(frame(b"1") * count))
    loop = Loop()
    await _call(server, GrpcApp([StreamHandler(METHOD, answer)], max_message_bytes=100))
    loop.stop()
    assert len(received) == count
    assert least_turns <= loop.turn <= 2 * least_turns + 2


async def test_few_messages_on_each_of_many_streams_take_many_turns() -> None:
    """A frame of 16 messages on each of 500 streams kept the event loop from all others for 0.4 s."""

    async def answer(messages: AsyncIterator[bytes], _call: Call) -> AnswerGroups:
        async for message in messages:
            yield (message,)

    app = GrpcApp([StreamHandler(METHOD, answer)], max_message_bytes=100)
    servers = [FakeServer(_request(frame(b"1") * 16)) for _ in range(100)]
    loop = Loop()
    await asyncio.gather(*(_call(server, app) for server in servers))
    loop.stop()
    assert all(server.types.count("body") == 17 for server in servers)
    assert loop.turn >= 20


async def test_a_large_message_is_joined_in_a_turn_of_its_own() -> None:
    """A small one is not worth it, and neither is a message in one chunk, which is not copied."""
    turns = CountingTurns()
    app = GrpcApp([UnaryHandler(METHOD, _echo)], max_message_bytes=2**24, turns=turns)
    for chunks in ([frame(bytes(2**22))], [frame(bytes(1000)), b""], [frame(bytes(2**22)), b""]):
        await _call(FakeServer(*_requests(chunks)), app)
    assert turns.costs_us == []
    body = frame(bytes(2**22))
    server = FakeServer(*_requests([body[:1000], body[1000:-1000], body[-1000:]]))
    await _call(server, app)
    assert server.sent[0]["body"] == body
    assert turns.costs_us == [2**22 // 2000]
    body = frame(bytes(2**23))
    server = FakeServer(*_requests([body[:1000], body[1000:1001], body[1001:-1000], body[-1000:]]))
    await _call(server, app)
    assert server.sent[0]["body"] == body
    assert turns.costs_us == [2**22 // 2000]  # joined in a thread


@pytest.mark.parametrize("path", [METHOD, "/tests.Echo/Nowhere"])
async def test_a_disconnected_client_is_not_an_error(caplog: pytest.LogCaptureFixture, path: str) -> None:
    """Nothing is sent or logged."""
    await _call(FakeServer(_request(frame(b"hello")), send_fails=BrokenPipeError()), path=path)
    assert not caplog.records


async def test_calls_with_the_same_headers_have_deadlines_of_their_own() -> None:
    """Our HTTP/2 server gives them one scope, in which the application keeps what it has read."""
    calls: list[Call] = []

    async def answer(_read: bytes | Read, call: Call) -> bytes:
        calls.append(call)
        return b""

    app = GrpcApp([UnaryHandler(METHOD, answer)], max_message_bytes=100)
    headers = [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"grpc-timeout", b"1S")]
    scope = {"type": "http", "path": METHOD, "headers": headers, "extensions": EXTENSIONS}
    for _ in range(2):
        server = FakeServer(_request(frame(b"hello")))
        await app(scope, server.receive, server.send)
        assert server.types == ["answer"]
    assert calls[0].deadline_s < calls[1].deadline_s


async def test_grpc_needs_trailers() -> None:
    """Without them the answer is an error in the headers."""
    server = FakeServer(_request(frame(b"hello")))
    await _call(server, extensions={})
    assert server.types == ["start", "body"]
    headers = dict(server.sent[0]["headers"])
    assert headers[b"grpc-status"] == b"13"
    assert b"trailers" in headers[b"grpc-message"]


async def test_other_content_types_go_to_another_application() -> None:
    """If there is one; otherwise the status is 415."""
    server, others = FakeServer(), []

    async def other(scope: Event, _receive: Receive, _send: Send) -> None:
        others.append(scope["path"])

    headers = [(b"content-type", b"application/json")]
    await _call(server, GrpcApp([], max_message_bytes=100, other=other), headers=headers)
    assert others == [METHOD]
    await _call(server, headers=headers)
    assert [event.get("status") for event in server.sent] == [415, None]


async def test_a_bug_of_the_transport_is_internal_and_its_traceback_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets a fixed message."""

    async def answer(_read: bytes | Read, _call: Call) -> bytes:
        raise ZeroDivisionError("secret")

    server = FakeServer(_request(frame(b"hello")))
    with caplog.at_level(logging.ERROR):
        await _call(server, GrpcApp([UnaryHandler(METHOD, answer)], max_message_bytes=100))
    assert dict(server.sent[0]["headers"])[b"grpc-status"] == b"13"
    assert "secret" not in str(server.sent)
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info is not None) == ("transport_failed", True)
