"""Serves RPCs over grpc.aio, the reference server, with generic handlers. Independent of messages."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc

from serving.addresses import join_address
from serving.errors import AddressUnavailable, forget_frames
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
from serving.rpc.status import DETAILS_KEY, Code, Status
from serving.transports.http.limits import DEFAULT_LIMITS, Limits
from serving.transports.tls import TlsFiles, read_pem

# When grpc.aio stops, calls that it has received but not yet handed over end as CANCELLED, which clients do
# not retry. So new calls are first rejected as UNAVAILABLE, long enough for clients to move to other servers,
# and until none has come for a moment.
_REJECTING_S, _MOST_REJECTING_S = 0.2, 2.0
_QUIET_S = 0.02
# Time to write the last answers. Streams that are still open are cut afterwards.
_CLOSING_S = 0.5

# If a call is cancelled, its messages end first. The cancellation follows within this time.
_CANCELLATION_S = 0.005

_FIRST_MESSAGE_S = 0.1  # of a stream that is rejected

_MAX_STREAMS = 1024  # of one connection; clients keep the rest waiting

# gRPC's core ends received calls as CANCELLED if more than 1,000 wait to be handed over, or for longer than
# 30 s (src/core/server/server.cc). Ours are rejected by the middleware, with a reason, and counted.
_NO_LIMIT = 2**31 - 1
_MOST_WAITING_S = 3600

# Pings above this rate are strikes, until something is sent to the client; after too many the connection is
# closed (ENHANCE_YOUR_CALM). By default two pings within 300 s are too many.
_LEAST_PING_INTERVAL_MS = 100
_MAX_PING_STRIKES = 100

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer:
    """A grpc.aio server. `async with` binds and starts it; `stop` ends it gracefully."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
        tls: TlsFiles | None = None,
        shares_port: bool = False,
        reject_unknown: Reject = uncounted,
    ) -> None:
        """Store the options.

        Args:
            handlers: handlers of all RPCs.
            host: address to listen on.
            port: port to listen on; 0 chooses a free one.
            max_message_bytes: maximum size of a request.
            limits: on clients; grpc.aio keeps those in time.
            tls: without it calls are not encrypted.
            shares_port: whether other processes may listen on the same port.
            reject_unknown: counts calls of unknown methods.
        """
        self.host = host
        self.port = port
        self._handlers = _GrpcHandlers(handlers, reject_unknown)
        self._tls = tls
        self._renewed_certificates: Any = None  # until the next handshake
        self._options = (
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shares_port)),  # otherwise a port in use is an error
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_INTERVAL_MS),
            ("grpc.http2.max_ping_strikes", _MAX_PING_STRIKES),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_concurrent_streams", _MAX_STREAMS),
            ("grpc.server.max_pending_requests", _NO_LIMIT),
            ("grpc.server.max_pending_requests_hard_limit", _NO_LIMIT),
            ("grpc.server_max_unrequested_time_in_server", _MOST_WAITING_S),
            *_time_limits(limits),
        )
        self._server: Any = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((self._handlers,))
        address = join_address(self.host, self.port)
        try:
            self.port = self._bind(address)
        except RuntimeError as error:
            raise AddressUnavailable(
                f"gRPC cannot listen on {address}; set another --grpc-port or --host"
            ) from error
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)

    def _bind(self, address: str) -> int:
        if self._tls is None:
            return int(self._server.add_insecure_port(address))
        credentials = grpc.dynamic_ssl_server_credentials(
            _certificates(self._tls), self._take_renewed, self._tls.client_ca_file is not None
        )
        return int(self._server.add_secure_port(address, credentials))

    def reload_tls(self) -> None:
        """Load the TLS files again, for new connections.

        Raises:
            UsageError: they are invalid; the old ones stay in use.
        """
        if self._tls is not None:
            self._tls.check()
            self._renewed_certificates = _certificates(self._tls)

    def _take_renewed(self) -> Any:  # noqa: ANN401
        """Return changed certificates once; None keeps the present ones. Called for each handshake."""
        renewed, self._renewed_certificates = self._renewed_certificates, None
        return renewed

    async def stop(self, *, until: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """Let running calls end, for at most timeout_s seconds, then close.

        Args:
            until: rejects new calls, and returns when all running ones have ended.
            timeout_s: limit after which running calls are cut.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await until()
                await asyncio.sleep(_REJECTING_S)
                await self._rejected_all()
        except TimeoutError:
            await self._server.stop(None)
        else:
            await self._server.stop(_CLOSING_S)

    async def _rejected_all(self) -> None:
        """Wait until no call has been handed over for a moment, or clients will not stop calling."""
        end_s, seen = time.monotonic() + _MOST_REJECTING_S - _REJECTING_S, -1
        while seen != self._handlers.calls and time.monotonic() < end_s:
            seen = self._handlers.calls
            await asyncio.sleep(_QUIET_S)


def _time_limits(limits: Limits) -> Sequence[tuple[str, int]]:
    """Return the options of gRPC's core for limits in time. It changes the age by 10 % itself."""
    seconds = {
        "grpc.server_handshake_timeout_ms": limits.tls_handshake_s,
        "grpc.max_connection_idle_ms": limits.idle_timeout_s,
        "grpc.max_connection_age_ms": limits.max_connection_age_s,
        "grpc.max_connection_age_grace_ms": limits.max_connection_age_grace_s,
        "grpc.keepalive_time_ms": limits.ping_after_s,
        "grpc.keepalive_timeout_ms": limits.ping_timeout_s,
    }
    return [
        (option, min(int(each_s * 1000), 2**31 - 1))
        for option, each_s in seconds.items()
        if each_s < math.inf
    ]


def _certificates(tls: TlsFiles) -> Any:  # noqa: ANN401
    chain = [(read_pem(tls.key_file), read_pem(tls.cert_file))]
    client_ca = read_pem(tls.client_ca_file) if tls.client_ca_file else None
    return grpc.ssl_server_certificate_configuration(chain, client_ca)


class _GrpcHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    def __init__(self, handlers: Sequence[Handler], reject_unknown: Reject) -> None:
        self._handlers = {each.method: _grpc_handler(each) for each in handlers}
        self._reject_unknown = reject_unknown
        self.calls = 0  # handed over so far

    def service(self, details: Any) -> Any:  # noqa: ANN401
        """Return the handler of a method, when a call is handed over."""
        self.calls += 1
        return self._handlers.get(details.method) or self._unknown(details.method)

    def _unknown(self, method: str) -> Any:  # noqa: ANN401
        async def handle(messages: AsyncIterator[bytes], context: Any) -> None:  # noqa: ANN401
            call, status = (
                _call(context),
                Status(Code.UNIMPLEMENTED, "UNKNOWN_METHOD", f"unknown method {method!r}"),
            )
            self._reject_unknown(call, status)
            await _Messages(messages).await_first()
            await _abort(context, Failure(status), call)

        return grpc.stream_stream_rpc_method_handler(handle)


def _grpc_handler(handler: Handler) -> Any:  # noqa: ANN401
    if isinstance(handler, StreamHandler):
        return grpc.stream_stream_rpc_method_handler(_stream(handler))
    return grpc.unary_unary_rpc_method_handler(_unary(handler))


def _unary(handler: UnaryHandler) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(message: bytes, context: Any) -> bytes:  # noqa: ANN401
        call = _call(context)

        async def read() -> bytes:  # gRPC's core has received it already
            return message

        try:
            answer = await handler.answer(read, call)
        except Failure as failure:
            await _abort(context, failure, call)
            return b""  # grpc.aio raises the stored AbortError
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        return answer

    return handle


def _stream(handler: StreamHandler) -> Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]:
    async def handle(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:  # noqa: ANN401
        call, received = _call(context), _Messages(messages)
        try:
            async for answers in handler.answer(received.until_end(), call):
                for answer in answers:
                    yield answer
        except Failure as failure:
            await received.await_first()
            await _abort(context, failure, call)

    return handle


class _Messages:
    """The messages of a stream."""

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self._messages = messages
        self._has_begun = False

    async def until_end(self) -> AsyncIterator[bytes]:
        """Yield the messages; return only if the client has ended its stream.

        When a client cancels a call, grpc.aio ends the messages as if the stream were complete, and cancels
        the handler a few iterations of the event loop later.
        """
        async for message in self._messages:
            self._has_begun = True
            yield message
        self._has_begun = True
        await asyncio.sleep(_CANCELLATION_S)

    async def await_first(self) -> None:
        """Give a client time to send its first message before its call is rejected, if it has not.

        grpc.aio's client reports INTERNAL, and not the status, if it writes to a stream that has just ended
        (grpc/aio/_call.py, `_write`).
        """
        if self._has_begun:
            return
        with suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                await anext(self._messages)


def _call(context: Any) -> Call:  # noqa: ANN401
    remaining_s = context.time_remaining()
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    call = Call(metadata)
    call.peer = context.peer()
    if remaining_s is not None:
        call.deadline_s = time.monotonic() + remaining_s
    return call


async def _abort(context: Any, failure: Failure, call: Call) -> None:  # noqa: ANN401
    status = failure.status.shortened()
    trailers = ((REQUEST_ID_KEY, call.request_id), (DETAILS_KEY, status.details(call.request_id)))
    try:
        await context.abort(_CODES[status.code], status.message, trailers)
    except grpc.aio.AbortError as error:
        forget_frames(error)  # grpc.aio stores it, and its frames hold the request: a reference cycle
