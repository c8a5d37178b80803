"""One call over a fake ASGI server: for cases that real clients cannot produce."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from serving.rpc.handlers import Failure, UnaryHandler
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status
from serving.transports.http.asgi import EXTENSIONS, Event, Receive, Send
from serving.transports.rpc_over_http.grpc_app import GrpcApp
from serving.transports.rpc_over_http.grpc_framing import frame

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
    def types(self) -> Sequence[str]:
        """The types of the sent events, without their prefix."""
        return [event["type"].rpartition(".")[2] for event in self.sent]


async def _echo(message: bytes, call: Call) -> bytes:
    call.request_id = "id-7"
    return message


async def _call(server: FakeServer, app: GrpcApp | None = None, **scope: Any) -> None:
    headers = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
    usual = {"type": "http", "path": METHOD, "headers": headers, "extensions": EXTENSIONS}
    app = app or GrpcApp([UnaryHandler(METHOD, _echo)], max_message_bytes=100)
    await app(usual | scope, server.receive, server.send)


def _request(body: bytes, *, more: bool = False) -> Event:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_message_in_one_chunk_is_answered_without_waiting_for_more() -> None:
    """Most clients end their request with a separate frame; the answer does not wait for it."""
    server = FakeServer(_request(frame(b"hello"), more=True))
    await _call(server)
    assert server.types == ["answer"]
    assert server.sent[0]["body"] == frame(b"hello")
    assert dict(server.sent[0]["trailers"]) == {b"grpc-status": b"0", b"x-request-id": b"id-7"}


@pytest.mark.parametrize(("first", "received"), [(b"", 1), (frame(b"hello")[:7], 1), (frame(b"hello"), 0)])
async def test_a_full_server_does_not_receive_the_rest_of_a_message(first: bytes, received: int) -> None:
    """A complete message is passed to the function, which gives more details."""
    refused: list[Call] = []

    def admit(call: Call) -> None:
        refused.append(call)
        raise Failure(Status(Code.RESOURCE_EXHAUSTED, "OVERLOADED", "full"))

    server = FakeServer(_request(first, more=True))
    await _call(server, GrpcApp([UnaryHandler(METHOD, _echo, admit)], max_message_bytes=100))
    assert len(refused) == received
    ending = dict(server.sent[0]["headers" if received else "trailers"])
    assert ending[b"grpc-status"] == (b"8" if received else b"0")


@pytest.mark.parametrize("path", [METHOD, "/tests.Echo/Nowhere"])
async def test_a_disconnected_client_is_not_an_error(caplog: pytest.LogCaptureFixture, path: str) -> None:
    """Nothing is sent or logged."""
    await _call(FakeServer(_request(frame(b"hello")), send_fails=BrokenPipeError()), path=path)
    assert not caplog.records


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

    async def answer(_message: bytes, _call: Call) -> bytes:
        raise ZeroDivisionError("secret")

    server = FakeServer(_request(frame(b"hello")))
    with caplog.at_level(logging.ERROR):
        await _call(server, GrpcApp([UnaryHandler(METHOD, answer)], max_message_bytes=100))
    assert dict(server.sent[0]["headers"])[b"grpc-status"] == b"13"
    assert "secret" not in str(server.sent)
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info is not None) == ("transport_failed", True)
