"""Connect's unary calls and gRPC-Web as an ASGI application, for curl, scripts and browsers.

Over HTTP/1.1 and HTTP/2. Connect is specified at https://connectrpc.com/docs/protocol.
"""

import asyncio
import base64
import json
import math
import time
from collections.abc import Sequence

from google.rpc import status_pb2

from serving.rpc.handlers import REQUEST_ID_KEY, Failure, Handler, Reject, UnaryHandler, uncounted
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status
from serving.transports.http.asgi import Event, Receive, RequestRefused, Send, request_body
from serving.transports.http.byte_buffer import ByteBuffer
from serving.transports.rpc_over_http.compression import decompress
from serving.transports.rpc_over_http.connect_json import MAX_JSON_BYTES, to_answer, to_request
from serving.transports.rpc_over_http.grpc_app import GrpcApp, status_of_failure
from serving.transports.rpc_over_http.grpc_framing import (
    Metadata,
    Pairs,
    RawHeaders,
    refused,
    too_long,
    unknown_method,
)
from serving.transports.rpc_over_http.grpc_web import GrpcWebApp, is_grpc_web, media_type_of
from serving.transports.rpc_over_http.joining import LEAST_BYTES, join_in_thread
from serving.transports.rpc_over_http.lingering_body import LingeringBody
from serving.turns import LARGE_BYTES, Turns, copy_us

_JSON, _PROTO = b"application/json", b"application/proto"
_MAX_TIMEOUT_DIGITS = 10
_UNSUPPORTED = (
    b"unsupported content type '%s': use application/grpc, application/grpc-web, or for Connect "
    b"application/json or application/proto\n"
)

# Counts requests of another HTTP method or media type, which get an HTTP status.
_NOT_SUPPORTED = Status(
    Code.UNIMPLEMENTED, "UNSUPPORTED", "the HTTP method or the media type is not supported"
)

# The table of Connect's specification, for the codes that this server uses.
_HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}


class ConnectApp:
    """An ASGI application for all requests that are not gRPC."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        max_message_bytes: int,
        reject_unknown: Reject = uncounted,
        turns: Turns | None = None,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_json_bytes = min(max_message_bytes, MAX_JSON_BYTES)
        self._turns = turns or Turns()
        grpc = GrpcApp(
            handlers, max_message_bytes=max_message_bytes, reject_unknown=reject_unknown, turns=self._turns
        )
        self._grpc_web = GrpcWebApp(grpc)
        self._reject_unknown = reject_unknown
        self._rejects = {each.method: each.reject for each in handlers}
        self._unary = {each.method: each for each in handlers if isinstance(each, UnaryHandler)}

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer a request."""
        body = LingeringBody(receive, max_bytes=self._max_message_bytes)
        await self._answer(scope, body, send)
        await body.discard()

    async def _answer(self, scope: Event, receive: Receive, send: Send) -> None:
        headers: RawHeaders = dict(scope["headers"])
        media_type = media_type_of(headers)
        if scope["method"] != "POST":
            text = b"" if scope["method"] == "HEAD" else b"the method is not allowed: use POST\n"
            call = self._rejected(scope, _NOT_SUPPORTED)
            await _reply(send, 405, b"text/plain", text, [(b"allow", b"POST"), *_request_id(call)])
        elif is_grpc_web(media_type):
            await self._grpc_web(scope, receive, send)
        elif media_type not in (_JSON, _PROTO):
            call = self._rejected(scope, _NOT_SUPPORTED)
            await _reply(send, 415, b"text/plain", _UNSUPPORTED % media_type, _request_id(call))
        elif scope["path"] not in self._unary:
            status = unknown_method(scope["path"]).status
            call = self._rejected(scope, status)
            await _reply(send, 404, _JSON, _error(status, call.request_id), _request_id(call))
        else:
            call = Call(Metadata(headers))
            call.peer = scope.get("client")
            handler = self._unary[scope["path"]]
            await self._connect(handler, call, headers, receive, send, is_json=media_type == _JSON)

    def _rejected(self, scope: Event, status: Status) -> Call:
        """Count a request that no handler sees, and return its call, which has a request id."""
        call = Call(Metadata(dict(scope["headers"])))
        call.peer = scope.get("client")
        self._rejects.get(scope["path"], self._reject_unknown)(call, status)
        return call

    async def _connect(
        self,
        handler: UnaryHandler,
        call: Call,
        headers: RawHeaders,
        receive: Receive,
        send: Send,
        *,
        is_json: bool,
    ) -> None:
        async def read() -> bytes:
            max_bytes = self._max_json_bytes if is_json else self._max_message_bytes
            try:
                body = await self._body(headers, receive, max_bytes)
            except RequestRefused as refusal:
                raise refused(refusal) from refusal
            return await to_request(handler.method, body) if is_json else body

        try:
            call.deadline_s = _deadline_s(headers)
            answer = await handler.answer(read, call)
            if is_json:
                answer = await to_answer(handler.method, answer)
        except Exception as error:  # noqa: BLE001 - the client always gets a status
            status = status_of_failure(error)
            if status is not None:
                if not call.request_id:  # the handler has not seen the call
                    handler.reject(call, status)
                text = _error(status, call.request_id)
                await _reply(send, _HTTP_STATUS[status.code], _JSON, text, _request_id(call))
            return
        await _reply(send, 200, _JSON if is_json else _PROTO, answer, _request_id(call))

    async def _body(self, headers: RawHeaders, receive: Receive, max_bytes: int) -> bytes:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > max_bytes:
            raise too_long(f"{int(length)} bytes", max_bytes)
        body, more = ByteBuffer(), True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise asyncio.CancelledError
            body.append(event.get("body", b""))
            if body.size > max_bytes:
                raise too_long(f"more than {max_bytes} bytes", max_bytes)
            more = event.get("more_body", False)
        if body.size >= LEAST_BYTES:
            await join_in_thread(body)
        elif body.size > LARGE_BYTES:
            await self._turns.take(copy_us(body.size))
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding == b"identity":
            return body.take()
        try:
            charge = request_body(receive).charge
            return await decompress(body.take(), encoding, max_bytes, charge, self._turns)
        except Failure as failure:
            if (
                failure.status.code is Code.INTERNAL
            ):  # gRPC's specification calls it so; it is the client's error
                raise _invalid(failure.status.message) from failure
            raise


def _deadline_s(headers: RawHeaders) -> float:
    timeout = headers.get(b"connect-timeout-ms")
    if timeout is None:
        return math.inf
    if not timeout.isdigit() or len(timeout) > _MAX_TIMEOUT_DIGITS:
        raise _invalid(
            f"invalid connect-timeout-ms {timeout.decode('ascii', 'replace')!r}: "
            f"use 1 to {_MAX_TIMEOUT_DIGITS} digits"
        )
    return time.monotonic() + int(timeout) / 1000


def _error(status: Status, request_id: str) -> bytes:
    """Encode an error in Connect's JSON: the code in lower case, and details by their type."""
    status = status.shortened()
    packed = status_pb2.Status.FromString(status.details(request_id)).details if request_id else ()
    details = [
        {
            "type": each.type_url.rpartition("/")[2],
            "value": base64.b64encode(each.value).rstrip(b"=").decode(),
        }
        for each in packed
    ]
    code = "canceled" if status.code is Code.CANCELLED else status.code.name.lower()
    return json.dumps({"code": code, "message": status.message, "details": details}).encode()


def _invalid(message: str) -> Failure:
    return Failure(Status(Code.INVALID_ARGUMENT, "INVALID_REQUEST", message))


def _request_id(call: Call) -> Pairs:
    return [(REQUEST_ID_KEY.encode(), call.request_id.encode())] if call.request_id else []


async def _reply(
    send: Send, status: int, content_type: bytes, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    usual = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*usual, *headers]})
    await send({"type": "http.response.body", "body": body})
