"""The access log: one line for a call, with its request id. A sample of calls, or all.

It wraps handlers, so that calls cost nothing more while it is off.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from serving.addresses import join_address
from serving.rpc.cancellation import code_of_cancelled
from serving.rpc.handlers import (
    AnswerGroups,
    AnswerStream,
    Failure,
    Handler,
    Read,
    Reject,
    StreamHandler,
    UnaryHandler,
    message_of,
)
from serving.rpc.routes import Call
from serving.rpc.status import Code, Status

_MAX_MODEL_CHARACTERS = 200  # clients send any text as the name of a model

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """What is known of a call when it ends. Bytes are those of messages, after decompression."""

    started_s: float
    bytes_in: int = 0
    bytes_out: int = 0
    code: Code = Code.OK


class AccessLog:
    """Writes a line for each call of a sample."""

    def __init__(self, sample: float, *, draw: Callable[[], float] = random.random) -> None:
        """Store the options.

        Args:
            sample: share of calls, 0 to 1.
            draw: returns numbers in [0, 1).
        """
        self._sample = sample
        self._draw = draw

    def wrap(self, handler: Handler) -> Handler:
        """Return a handler that logs its calls."""
        reject = self.rejecting(handler.method, handler.reject)
        if isinstance(handler, StreamHandler):
            return replace(handler, answer=self._stream(handler.method, handler.answer), reject=reject)
        return replace(handler, answer=self._unary(handler), reject=reject)

    def rejecting(self, method: str, reject: Reject) -> Reject:
        """Return a function that also logs the calls that it rejects."""

        def logged(call: Call, status: Status) -> None:
            reject(call, status)
            if self._draw() < self._sample:
                _write(method, call, _Entry(time.perf_counter(), code=status.code))

        return logged

    def _unary(self, handler: UnaryHandler) -> Callable[[bytes | Read, Call], Awaitable[bytes]]:
        async def answer(read: bytes | Read, call: Call) -> bytes:
            if self._draw() >= self._sample:
                return await handler.answer(read, call)
            entry = _Entry(time.perf_counter())

            async def counted() -> bytes:
                message = await message_of(read)
                entry.bytes_in = len(message)
                return message

            try:
                response = await handler.answer(counted, call)
                entry.bytes_out = len(response)
            except Failure as failure:
                entry.code = failure.status.code
                raise
            except asyncio.CancelledError:
                entry.code = code_of_cancelled(call.deadline_s, entry.started_s)
                raise
            else:
                return response
            finally:
                _write(handler.method, call, entry)

        return answer

    def _stream(self, method: str, answer: AnswerStream) -> AnswerStream:
        async def counted(messages: AsyncIterator[bytes], entry: _Entry) -> AsyncIterator[bytes]:
            async for message in messages:
                entry.bytes_in += len(message)
                yield message

        async def logged(messages: AsyncIterator[bytes], call: Call) -> AnswerGroups:
            entry = _Entry(time.perf_counter())
            try:
                async with aclosing(answer(counted(messages, entry), call)) as groups:
                    async for group in groups:
                        entry.bytes_out += sum(map(len, group))
                        yield group
            except Failure as failure:
                entry.code = failure.status.code
                raise
            except (asyncio.CancelledError, GeneratorExit):
                entry.code = code_of_cancelled(call.deadline_s, entry.started_s)
                raise
            finally:
                _write(method, call, entry)

        def sampled(messages: AsyncIterator[bytes], call: Call) -> AnswerGroups:
            return (answer if self._draw() >= self._sample else logged)(messages, call)

        return sampled


def _write(method: str, call: Call, entry: _Entry) -> None:
    peer = getattr(call, "peer", None)
    fields = {
        "method": method,
        "code": entry.code.name,
        "duration_s": round(time.perf_counter() - entry.started_s, 6),
        "bytes_in": entry.bytes_in,
        "bytes_out": entry.bytes_out,
        "model": getattr(call, "model", "")[:_MAX_MODEL_CHARACTERS],
        "peer": join_address(*peer[:2]) if isinstance(peer, tuple) else peer or "",
        "request_id": call.request_id,
    }
    _log.info("call", extra=fields)
