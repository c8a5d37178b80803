"""What surrounds every RPC: request ids, metrics, errors, parsing, tokens, deadlines. Knows no RPC library.

A wrapped row goes from bytes to bytes, so that a transport only moves them.
"""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from google.protobuf.message import DecodeError, Message

from serving.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable
from serving.metrics import Metrics
from serving.transport.status import Code, Status, status_of
from serving.transport.table import Call, Rpc, Stream, Unary
from serving.transport.tokens import Tokens

REQUEST_ID_KEY = "x-request-id"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger(__name__)


class Failure(Exception):
    """A call ended with this status: what a transport turns into its own trailers."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass(frozen=True, slots=True)
class WireUnary:
    """A wrapped row: one message in, one out, as bytes. Raises Failure."""

    method: str
    answer: Callable[[bytes, Call], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class WireStream:
    """A wrapped row: messages in, messages out, as bytes. Raises Failure."""

    method: str
    answer: Callable[[AsyncIterator[bytes], Call], AsyncIterator[bytes]]


WireRpc = WireUnary | WireStream


class Around:
    """Wraps rows of the table. A class because it counts what runs, which a graceful stop waits for."""

    def __init__(self, metrics: Metrics, tokens: Tokens | None = None) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def idle(self) -> None:
        """Wait until no unary call runs. Streams end when their clients or the transport end them."""
        await self._idle.wait()

    async def drain(self) -> None:
        """Refuse new calls but probes, and wait until no unary call runs."""
        self._draining = True
        await self.idle()

    def wrap(self, rpc: Rpc) -> WireRpc:
        """Surround one row."""
        if isinstance(rpc, Stream):
            return WireStream(rpc.method, self._stream(rpc))
        return WireUnary(rpc.method, self._unary(rpc))

    def _unary(self, rpc: Unary) -> Callable[[bytes, Call], Awaitable[bytes]]:
        async def answer(message: bytes, call: Call) -> bytes:
            with self._observed(rpc, call), self._counted():
                self._admit(rpc)
                request = _parse(rpc, message)
                self._authorize(rpc, call, getattr(request, rpc.model_field) if rpc.model_field else "")
                async with _deadline(call):
                    return (await rpc.answer(request, call)).SerializeToString()

        return answer

    def _stream(self, rpc: Stream) -> Callable[[AsyncIterator[bytes], Call], AsyncIterator[bytes]]:
        async def answer(messages: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
            with self._observed(rpc, call):
                self._admit(rpc)
                self._authorize(rpc, call, "")
                requests = (_parse(rpc, message) async for message in messages)
                async for response in rpc.answer(requests, call):
                    yield response.SerializeToString()

        return answer

    def _admit(self, rpc: Rpc) -> None:
        if self._draining and not rpc.is_open:
            raise ModelUnavailable("the server is stopping and takes no new calls")

    def _authorize(self, rpc: Rpc, call: Call, model: str) -> None:
        if self._tokens is not None and not rpc.is_open:
            self._tokens.check(call.metadata.get("authorization", ""), model)

    @contextmanager
    def _observed(self, rpc: Rpc, call: Call) -> Iterator[None]:
        given = call.metadata.get(REQUEST_ID_KEY, "")
        call.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        started_s = time.perf_counter()
        code = Code.OK
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = Code.CANCELLED
            raise
        except Exception as error:
            status = status_of(error, call.request_id)
            code = status.code
            if code is Code.INTERNAL:
                _log.exception("call_failed", extra={"method": rpc.method, "request_id": call.request_id})
            raise Failure(status) from error
        finally:
            self._metrics.requests.labels(rpc.method, code.name).inc()
            self._metrics.request_duration.labels(rpc.method).observe(time.perf_counter() - started_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()


def _parse(rpc: Rpc, message: bytes) -> Any:  # noqa: ANN401 - each row has its own type of message
    request: Message = rpc.request()
    try:
        request.ParseFromString(message)
    except DecodeError as error:
        raise InvalidRequest(
            f"the request is no {rpc.request.DESCRIPTOR.full_name}: {len(message)} bytes"
        ) from error
    return request


class _deadline:  # noqa: N801 - used as a statement
    """Like asyncio.timeout_at, but a deadline that passes is a DeadlineExceeded."""

    def __init__(self, call: Call) -> None:
        self._timeout = asyncio.timeout_at(None if math.isinf(call.deadline_s) else call.deadline_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as timeout:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from timeout
