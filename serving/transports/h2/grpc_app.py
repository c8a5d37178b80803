"""Wrapped RPCs as an ASGI application that speaks gRPC: what happens to one call. Knows no message.

The ASGI server moves the bytes, controls the flow, and cancels the coroutine of a call whose client has gone;
grpc_framing.py says what the bytes mean.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any

from serving.rpc.middleware import REQUEST_ID_KEY, Failure, WireRpc, WireStream, WireUnary
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status
from serving.transports.h2.grpc_framing import (
    CONTENT_TYPE,
    PREFIX,
    Frames,
    RawHeaders,
    encoding_of,
    ending,
    frame,
    is_grpc,
    malformed,
    open_call,
    takes_gzip,
)
from serving.transports.http.asgi import ANSWER, TRAILERS, App, Event, Receive, Send

_BODY = "http.response.body"
_REQUEST_ID = REQUEST_ID_KEY.encode()
# Sent again and again, and never changed.
_HEADERS = ((b"content-type", CONTENT_TYPE), (b"grpc-accept-encoding", b"identity, deflate, gzip"))
_HEADERS_GZIP = (*_HEADERS, (b"grpc-encoding", b"gzip"))
_START = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_START_GZIP = {**_START, "headers": _HEADERS_GZIP}
_NO_BODY = {"type": _BODY}
_OK = (b"grpc-status", b"0")

_PATIENCE_S = 0.1
_UNSUPPORTED_MEDIA_TYPE = 415
_NO_METHOD = Failure(Status(Code.UNIMPLEMENTED, "UNKNOWN_METHOD", "there is no such method"))
_LATE = Status(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline passed before the answer was ready")
_NO_TRAILERS = malformed("gRPC needs HTTP/2 and `te: trailers`")

Handler = Callable[[RawHeaders, Receive, Send], Coroutine[Any, Any, None]]

_log = logging.getLogger(__name__)


class GrpcApp:
    """An ASGI application. A class because it is its table of handlers."""

    def __init__(self, rpcs: Sequence[WireRpc], *, max_message_bytes: int, other: App | None = None) -> None:
        self._other = other or _refuse  # serves what is no gRPC
        self._max_message_bytes = max_message_bytes
        self._handlers = {rpc.method: self._handler(rpc) for rpc in rpcs}

    def __call__(self, scope: Event, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """The coroutine that serves a request."""
        headers: RawHeaders = dict(scope.get("headers", ()))
        content_type = headers.get(b"content-type", b"")
        if content_type != CONTENT_TYPE and not is_grpc(content_type):
            return self._other(scope, receive, send)
        if TRAILERS not in scope["extensions"]:
            return _fail(send, _NO_TRAILERS)
        handler = self._handlers.get(scope["path"])
        return _no_method(receive, send) if handler is None else handler(headers, receive, send)

    def _handler(self, rpc: WireRpc) -> Handler:
        return self._stream(rpc) if isinstance(rpc, WireStream) else self._unary(rpc)

    def _unary(self, rpc: WireUnary) -> Handler:
        async def handle(headers: RawHeaders, receive: Receive, send: Send) -> None:
            call = None
            try:
                call = open_call(headers)
                event = await receive()
                message = self._whole_message(event.get("body", b""))
                if message is None:
                    message = await self._only_message(headers, receive, event, call, rpc.admit)
                body = frame(await rpc.answer(message, call), compressed=takes_gzip(headers))
                fields = _HEADERS_GZIP if body[0] else _HEADERS
                trailers = (_OK, (_REQUEST_ID, call.request_id.encode()))
                await send({"type": ANSWER, "headers": fields, "body": body, "trailers": trailers})
            except Exception as error:  # noqa: BLE001 - every end of a call is told to its client
                await _fail(send, error, call)

        return handle

    def _stream(self, rpc: WireStream) -> Handler:
        async def handle(headers: RawHeaders, receive: Receive, send: Send) -> None:
            call = None
            is_started = False
            try:
                call = open_call(headers)
                messages = self._messages(headers, receive)
                compressed = takes_gzip(headers)
                answers = rpc.answer(messages, call)
                async with _deadline(call), aclosing(messages), aclosing(answers):
                    async for group in answers:
                        if not is_started:
                            await send(_START_GZIP if compressed else _START)
                            is_started = True
                        body = b"".join([frame(answer, compressed=compressed) for answer in group])
                        await send({"type": _BODY, "body": body, "more_body": True})
                if not is_started:
                    await send(_START)
                await send(_NO_BODY)
                await send(_ending_well(call))
            except Exception as error:  # noqa: BLE001 - every end of a call is told to its client
                if isinstance(error, Failure) and not is_started:
                    await _hear_out(receive)
                await _fail(send, error, call, is_started=is_started)

        return handle

    def _whole_message(self, body: bytes) -> bytes | None:
        """The message of a unary call where it is one chunk and plain, as most are: it is only cut off."""
        length = len(body) - PREFIX.size
        if 0 <= length <= self._max_message_bytes and PREFIX.unpack_from(body) == (0, length):
            return body[PREFIX.size :]
        return None

    async def _only_message(
        self,
        headers: RawHeaders,
        receive: Receive,
        event: Event,
        call: Call,
        admit: Callable[[Call], None],
    ) -> bytes:
        """The message of a unary call in several chunks; `event` is the first.

        The rest is not even received when there is no place for it: while the server has more to do than it
        can, what it refuses should cost it nothing.
        """
        admit(call)
        async with _deadline(call), aclosing(self._messages(headers, receive, event)) as messages:
            async for message in messages:
                return message
        raise malformed("the request has no message")

    async def _messages(
        self, headers: RawHeaders, receive: Receive, event: Event | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The messages of a request, each as soon as it is complete; `event` was already received."""
        frames = Frames(encoding_of(headers), self._max_message_bytes)
        more = True
        while more:
            event = await receive() if event is None else event
            if event["type"] == "http.disconnect":
                raise asyncio.CancelledError
            for message in frames.feed(event.get("body", b"")):
                yield message
            more = event.get("more_body", False)
            event = None
        frames.close()


def _deadline(call: Call) -> asyncio.Timeout:
    """A TimeoutError when the call's time is over. While a unary call is answered `around` sees to that."""
    return asyncio.timeout_at(None if math.isinf(call.deadline_s) else call.deadline_s)


def _ending_well(call: Call) -> Event:
    return {"type": TRAILERS, "headers": [_OK, (_REQUEST_ID, call.request_id.encode())]}


async def _no_method(receive: Receive, send: Send) -> None:
    await _hear_out(receive)
    await _fail(send, _NO_METHOD)


async def _hear_out(receive: Receive) -> None:
    """Let a client begin its request before it is refused.

    A client whose first message meets a stream that has already ended need not look why: grpc.aio told
    INTERNAL every other time. One that says nothing waits a moment for its refusal.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await receive()


async def _fail(send: Send, error: Exception, call: Call | None = None, *, is_started: bool = False) -> None:
    """End a call with a status: in trailers, or in headers alone where nothing was sent yet."""
    status = status_of_failure(error)
    if status is None:
        return
    pairs = ending(status, call.request_id if call else "")
    with suppress(OSError):  # the client has gone
        if is_started:
            await send(_NO_BODY)
            await send({"type": TRAILERS, "headers": pairs})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *pairs]})
            await send(_NO_BODY)


def status_of_failure(error: Exception) -> Status | None:
    """How a call ends; None where there is nobody left to be told."""
    if isinstance(error, Failure):
        return error.status
    if isinstance(error, TimeoutError):
        return _LATE
    if isinstance(error, OSError):  # of `send`: the client has gone
        return None
    _log.error("transport_failed", exc_info=error)
    return Status(Code.INTERNAL, "INTERNAL", "the server failed; its log has the reason")


async def _refuse(_scope: Event, _receive: Receive, send: Send) -> None:
    """Answer what is no gRPC as its specification wants it."""
    await send({"type": "http.response.start", "status": _UNSUPPORTED_MEDIA_TYPE, "headers": []})
    await send(_NO_BODY)
