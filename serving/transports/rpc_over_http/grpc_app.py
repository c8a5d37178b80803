"""An ASGI application that serves RPCs as gRPC. Independent of messages.

The ASGI server moves the bytes, controls the flow, and cancels the coroutine of a call if the client
disconnects; grpc_framing.py defines the format of the bytes.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from serving.rpc.call_deadlines import end_at
from serving.rpc.handlers import (
    REQUEST_ID_KEY,
    Failure,
    Handler,
    Reject,
    StreamHandler,
    UnaryHandler,
    uncounted,
)
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status
from serving.transports.http.asgi import (
    ANSWER,
    TRAILERS,
    AnswerOverBudget,
    App,
    Event,
    Receive,
    RequestBody,
    RequestRefused,
    Send,
    request_body,
)
from serving.transports.rpc_over_http.compression import decompress, framed
from serving.transports.rpc_over_http.grpc_framing import (
    CONTENT_TYPE,
    PREFIX,
    Framed,
    MessageReader,
    Metadata,
    RawHeaders,
    accepts_gzip,
    encoding_of,
    failure_trailers,
    frame,
    is_grpc,
    malformed,
    read_timeout,
    refused,
    unknown_method,
    wrong_count,
)
from serving.transports.rpc_over_http.joining import LEAST_BYTES
from serving.transports.rpc_over_http.unanswered import UnansweredMessages
from serving.turns import LARGE_BYTES, Turns, copy_us

_BODY = "http.response.body"
_REQUEST = "http.request"
_REQUEST_ID = REQUEST_ID_KEY.encode()
# Shared by all answers; must not be changed.
_HEADERS = ((b"content-type", CONTENT_TYPE), (b"grpc-accept-encoding", b"identity, deflate, gzip"))
_HEADERS_GZIP = (*_HEADERS, (b"grpc-encoding", b"gzip"))
_START = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_START_GZIP = {**_START, "headers": _HEADERS_GZIP}
_NO_BODY = {"type": _BODY}
_OK = (b"grpc-status", b"0")

_FIRST_MESSAGE_S = 0.1
_BEGINNING_BYTES = 2048  # of a large message: its first fields name the model
# A chunk of a stream can hold 200,000 messages, and a connection has a thousand streams: they share the
# turns of the event loop, 16 messages at a time, or one if others wait already.
_MESSAGES_AT_ONCE = 16
_MESSAGE_US = 40  # to parse and answer one, about
_UNSUPPORTED_MEDIA_TYPE = 415
_LATE = Status(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline passed before the answer was ready")
_NO_TRAILERS = malformed("gRPC needs HTTP/2 with trailers: use gRPC-Web or Connect over HTTP/1.1")

_KNOWN = "lenserve.grpc"  # key of a scope: what serves its calls, and their `_CallHead`


class _CallHead(NamedTuple):
    """What the headers of a call say. Kept in the scope: to read it again would take 1 us of the 34 us."""

    headers: RawHeaders
    metadata: Metadata
    client: tuple[Any, ...] | None  # its address
    accepts_gzip: bool
    has_timeout: bool


_ServeCall = Callable[[_CallHead, Receive, Send], Coroutine[Any, Any, None]]

_log = logging.getLogger(__name__)


class GrpcApp:
    """An ASGI application for gRPC. Other requests are passed to another application, or rejected."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        max_message_bytes: int,
        other: App | None = None,
        reject_unknown: Reject = uncounted,
        turns: Turns | None = None,
    ) -> None:
        self._other = other or _reject
        self._reject_unknown = reject_unknown
        self._rejects = {handler.method: handler.reject for handler in handlers}
        self._max_message_bytes = max_message_bytes
        self._turns = turns or Turns()
        self._uncounted = 0  # messages of streams since the last one that took a turn
        self._calls = {handler.method: self._serve(handler) for handler in handlers}

    def __call__(self, scope: Event, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Return the coroutine that answers a request."""
        known = scope.get(_KNOWN)
        if known is not None:
            return known[0](known[1], receive, send)  # type: ignore[no-any-return]
        headers: RawHeaders = dict(scope.get("headers", ()))
        content_type = headers.get(b"content-type", b"")
        if content_type != CONTENT_TYPE and not is_grpc(content_type):
            return self._other(scope, receive, send)
        if TRAILERS not in scope["extensions"]:
            return self._refuse(scope, headers, receive, send, _NO_TRAILERS)
        serve_call = self._calls.get(scope["path"])
        if serve_call is None:
            return self._refuse(scope, headers, receive, send, unknown_method(scope["path"]))
        head = _CallHead(
            headers, Metadata(headers), scope.get("client"), accepts_gzip(headers), b"grpc-timeout" in headers
        )
        scope[_KNOWN] = serve_call, head
        return serve_call(head, receive, send)

    async def _refuse(
        self, scope: Event, headers: RawHeaders, receive: Receive, send: Send, failure: Failure
    ) -> None:
        """End a call without a handler, or one that cannot be answered."""
        call = Call(Metadata(headers))
        call.peer = scope.get("client")
        self._rejects.get(scope["path"], self._reject_unknown)(call, failure.status)
        await _await_first_message(receive)
        await _fail(send, failure, call)

    def _serve(self, handler: Handler) -> _ServeCall:
        return self._stream(handler) if isinstance(handler, StreamHandler) else self._unary(handler)

    def _unary(self, handler: UnaryHandler) -> _ServeCall:
        async def serve_call(head: _CallHead, receive: Receive, send: Send) -> None:
            call = Call(head.metadata)
            call.peer = head.client
            body = request_body(receive)
            whole = body.take_whole()
            message: bytes | _Reader | None = None if whole is None else self._plain_message(whole)
            if message is None:
                message = _Reader(self._only_message, head.headers, call, body, whole)
            try:
                if head.has_timeout:
                    read_timeout(head.headers, call)
                answer = await handler.answer(message, call)
                data = (
                    await framed(answer, self._turns, compressed=True) if head.accepts_gzip else frame(answer)
                )
                fields = _HEADERS_GZIP if data[0] else _HEADERS
                trailers = (_OK, (_REQUEST_ID, call.request_id.encode()))
                await send({"type": ANSWER, "headers": fields, "body": data, "trailers": trailers})
            except Exception as error:  # noqa: BLE001 - the client always gets a status
                if isinstance(error, Failure):
                    _count_rejected(handler, call, error)
                    if isinstance(message, _Reader) and not message.has_begun:
                        await _await_first_message(receive)
                await _fail(send, error, call)

        return serve_call

    def _stream(self, handler: StreamHandler) -> _ServeCall:
        async def serve_call(head: _CallHead, receive: Receive, send: Send) -> None:
            call = Call(head.metadata)
            call.peer = head.client
            is_started = False
            deadline, timer = asyncio.timeout(None), None
            body = request_body(receive)
            unanswered = UnansweredMessages(
                body, self._max_message_bytes // 2, answers_each=handler.answers_each
            )
            try:
                read_timeout(head.headers, call)
                # The middleware enforces the deadline of a unary call.
                if not math.isinf(call.deadline_s):
                    timer = end_at(call.deadline_s, deadline, self._turns)
                messages = self._messages(head.headers, unanswered)
                compressed = head.accepts_gzip
                answers = handler.answer(messages, call)
                async with deadline, aclosing(messages), aclosing(answers):
                    async for group in answers:
                        if not is_started:
                            await send(_START_GZIP if compressed else _START)
                            is_started = True
                        data = (
                            b"".join([await framed(each, self._turns, compressed=True) for each in group])
                            if compressed
                            else b"".join(map(frame, group))
                        )
                        await send({"type": _BODY, "body": data, "more_body": True})
                        unanswered.answered(len(group))
                if not is_started:
                    await send(_START)
                await send(_NO_BODY)
                await send(_success(call))
            except Exception as error:  # noqa: BLE001 - the client always gets a status
                if isinstance(error, Failure) and not is_started:
                    _count_rejected(handler, call, error)
                    await _await_first_message(receive)
                is_late = deadline.expired()
                await _fail(send, Failure(_LATE) if is_late else error, call, is_started=is_started)
            finally:
                if timer is not None:
                    timer.cancel()
                del deadline, timer  # they hold the task: a reference cycle

        return serve_call

    def _plain_message(self, body: bytes) -> bytes | None:
        """Return the only message of a whole request, if it is not compressed. Saves 6 us per request."""
        length = len(body) - PREFIX.size
        if 0 <= length <= self._max_message_bytes and PREFIX.unpack_from(body) == (0, length):
            return body[PREFIX.size :]
        return None

    async def _only_message(
        self, headers: RawHeaders, call: Call, body: RequestBody, whole: bytes | None
    ) -> bytes:
        """Return the message of a unary call; `whole` is its request, if it has arrived.

        Raises:
            LenserveError: the call cannot be admitted; most of the message may be unread.
            Failure: the request has no message, or several (UNIMPLEMENTED: gRPC's doc/statuscodes.md).
        """
        event: Event = {"type": _REQUEST, "body": whole} if whole is not None else await _received(body)
        if whole is None and not event.get("more_body", False):
            received: bytes = event.get("body", b"")
            plain = self._plain_message(received)
            if plain is not None:
                return plain
        elif whole is None and hasattr(call, "check_beginning"):
            begun: bytes = event.get("body", b"")
            if begun.startswith(b"\0"):  # not compressed
                call.check_beginning(begun[PREFIX.size : PREFIX.size + _BEGINNING_BYTES], call)
        only = None
        encoding = encoding_of(headers)
        async with aclosing(self._framed(body, event)) as chunks:
            async for messages in chunks:
                for framed_message in messages:
                    if only is not None:
                        raise wrong_count("several messages")
                    only = framed_message
        if only is None:
            raise wrong_count("no message")
        if not only.is_compressed:
            return only.data
        return await decompress(only.data, encoding, self._max_message_bytes, body.charge, self._turns)

    async def _messages(
        self, headers: RawHeaders, unanswered: UnansweredMessages
    ) -> AsyncGenerator[bytes, None]:
        """Yield each message of a stream when it is complete, and when the one before it is taken."""
        encoding = encoding_of(headers)
        async with aclosing(self._framed(unanswered.body, unanswered=unanswered)) as chunks:
            async for messages in chunks:
                for is_compressed, data in messages:
                    self._uncounted += 1
                    if self._uncounted >= _MESSAGES_AT_ONCE or self._turns.has_waiting:
                        cost_us, self._uncounted = self._uncounted * _MESSAGE_US, 0
                        await self._turns.take(cost_us)
                    if unanswered.is_full:
                        await unanswered.room()
                    message, size = data, PREFIX.size + len(data)
                    if is_compressed:
                        charge, most = unanswered.body.charge, self._max_message_bytes
                        message = await decompress(data, encoding, most, charge, self._turns)
                        size += len(message)
                    unanswered.add(size)
                    yield message
                    unanswered.taken()

    async def _framed(
        self, receive: Receive, event: Event | None = None, unanswered: UnansweredMessages | None = None
    ) -> AsyncGenerator[Iterator[Framed], None]:
        """Yield the messages that each chunk of a request completes; `event` is the first event."""
        reader = MessageReader(self._max_message_bytes)
        more = True
        while more:
            if unanswered is not None:
                unanswered.body.may_pause = not reader.is_inside_message
                if unanswered.is_full:
                    await unanswered.room()
            event = await _received(receive) if event is None else event
            if event["type"] == "http.disconnect":
                raise asyncio.CancelledError
            chunk = event.get("body", b"")
            copied_bytes = reader.copied_bytes(chunk)
            if copied_bytes >= LEAST_BYTES:
                await reader.join(chunk)
                chunk = b""
            elif copied_bytes > LARGE_BYTES:
                await self._turns.take(copy_us(copied_bytes))
            yield reader.feed(chunk)
            more = event.get("more_body", False)
            event = None
        reader.close()


async def _received(receive: Receive) -> Event:
    """Receive the next part of a stream. The middleware knows failures, but no refusals of an HTTP server."""
    try:
        return await receive()
    except RequestRefused as refusal:
        raise refused(refusal) from refusal


class _Reader:
    """Reads the message of a unary call whose request has not arrived as one message."""

    def __init__(
        self,
        read: Callable[[RawHeaders, Call, RequestBody, bytes | None], Awaitable[bytes]],
        headers: RawHeaders,
        call: Call,
        body: RequestBody,
        whole: bytes | None,
    ) -> None:
        self.has_begun = False
        self._read = read
        self._arguments = headers, call, body, whole

    def __call__(self) -> Awaitable[bytes]:
        self.has_begun = True
        return self._read(*self._arguments)


def _success(call: Call) -> Event:
    return {"type": TRAILERS, "headers": [_OK, (_REQUEST_ID, call.request_id.encode())]}


def _count_rejected(handler: Handler, call: Call, failure: Failure) -> None:
    """Count a call that the handler has not seen: it gives a request id to all others."""
    if not call.request_id:
        handler.reject(call, failure.status)


async def _await_first_message(receive: Receive) -> None:
    """Give a client time to send its first message before its call is rejected.

    A client that writes to a closed stream may not read the status: grpc.aio reported INTERNAL every other
    time.
    """
    with suppress(TimeoutError, RequestRefused):
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            await receive()


async def _fail(send: Send, error: Exception, call: Call, *, is_started: bool = False) -> None:
    """End a call with a status: in trailers, or in headers if nothing has been sent yet."""
    status = status_of_failure(error)
    if status is None:
        return
    pairs = failure_trailers(status, call.request_id)
    is_started = is_started or (isinstance(error, AnswerOverBudget) and error.has_head)
    with suppress(OSError):  # the client has disconnected
        if is_started:
            await send(_NO_BODY)
            await send({"type": TRAILERS, "headers": pairs})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *pairs]})
            await send(_NO_BODY)


def status_of_failure(error: Exception) -> Status | None:
    """Return the status of a failed call; None if the client has disconnected."""
    if isinstance(error, Failure):
        return error.status
    if isinstance(error, RequestRefused):
        return refused(error).status
    if isinstance(error, AnswerOverBudget):
        return Status(Code.RESOURCE_EXHAUSTED, "OVERLOADED", str(error))
    if isinstance(error, OSError) and not isinstance(
        error, TimeoutError
    ):  # raised by `send`: the client has disconnected
        return None
    _log.error("transport_failed", exc_info=error)
    return Status(Code.INTERNAL, "INTERNAL", "the server failed; its log has the reason")


async def _reject(_scope: Event, _receive: Receive, send: Send) -> None:
    """Answer a content type other than gRPC's, as the specification demands."""
    await send({"type": "http.response.start", "status": _UNSUPPORTED_MEDIA_TYPE, "headers": []})
    await send(_NO_BODY)
