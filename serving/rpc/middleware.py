"""What surrounds every RPC: request ids, metrics, errors, parsing, tokens, deadlines. Knows no RPC library.

A wrapped row goes from bytes to bytes, so that a transport only moves them.
"""

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from serving.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable
from serving.metrics.recorder import Metrics
from serving.rpc.ordered_stream import pipelined
from serving.rpc.routes import Call, Pipeline, Reply, Rpc, Stream, Unary
from serving.rpc.status import Code, Status, status_of
from serving.rpc.tokens import Tokens

REQUEST_ID_KEY = "x-request-id"
DEFAULT_MAX_IN_FLIGHT = 64

_OK = Code.OK.name  # looked up once: names of an enum are slow
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
    # For a transport to call before it waits for the rest of a long message.
    admit: Callable[[Call], None] = lambda _call: None


_Groups = AsyncGenerator[Sequence[bytes], None]
_AnswerStream = Callable[[AsyncIterator[bytes], Call], _Groups]


@dataclass(frozen=True, slots=True)
class WireStream:
    """A wrapped row: messages in, groups of messages out that are ready at once, as bytes. Raises Failure."""

    method: str
    answer: _AnswerStream


WireRpc = WireUnary | WireStream


class Around:
    """Wraps rows of the table. A class because it counts what runs, which a graceful stop waits for."""

    def __init__(
        self, metrics: Metrics, tokens: Tokens | None = None, *, max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    ) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._max_in_flight = max_in_flight
        self._running = 0
        self._idle = asyncio.Event()
        self._draining = False
        self._ids = map("{}{:08x}".format, itertools.repeat(secrets.token_hex(4)), itertools.count())

    async def idle(self) -> None:
        """Wait until no unary call runs and no message of a pipeline. The transport ends streams."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    async def drain(self) -> None:
        """Refuse new calls but probes, also inside open pipelines, and wait until the others have ended."""
        self._draining = True
        await self.idle()

    def wrap(self, rpc: Rpc) -> WireRpc:
        """Surround one row."""
        if isinstance(rpc, Stream):
            return WireStream(rpc.method, self._stream(rpc))
        if isinstance(rpc, Pipeline):
            return WireStream(rpc.method, self._pipeline(rpc))
        return WireUnary(rpc.method, self._unary(rpc), self._early(rpc))

    def _early(self, rpc: Unary) -> Callable[[Call], None]:
        ended = self._metrics.rpc(rpc.method).ended

        def admit(call: Call) -> None:
            try:
                self._authorize(rpc, call, "")  # how busy the server is, is not for everyone
                if rpc.admit is not None:
                    rpc.admit()
            except Exception as error:
                self._name(call)
                status = self._status(rpc, call, error)
                ended(status.code.name, 0.0)
                raise Failure(status) from error

        return admit

    def _unary(self, rpc: Unary) -> Callable[[bytes, Call], Awaitable[bytes]]:
        # Written out in one piece: each layer more is a microsecond more for every call.
        ended = self._metrics.rpc(rpc.method).ended
        parse, compute = _parser(rpc), rpc.answer

        async def answer(message: bytes, call: Call) -> bytes:
            started_s = time.perf_counter()
            self._name(call)
            self._running += 1
            code = _OK
            try:
                self._admit(rpc)
                request = parse(message)
                if self._tokens is not None:
                    self._authorize(rpc, call, getattr(request, rpc.model_field) if rpc.model_field else "")
                if call.deadline_s == math.inf:
                    response = await compute(request, call)
                else:
                    response = await _in_time(compute(request, call), call.deadline_s)
                return response if isinstance(response, bytes) else response.SerializeToString()
            except (asyncio.CancelledError, GeneratorExit):
                code = Code.CANCELLED.name
                raise
            except Exception as error:
                status = self._status(rpc, call, error)
                code = status.code.name
                raise Failure(status) from error
            finally:
                self._leave()
                ended(code, time.perf_counter() - started_s)

        return answer

    def _stream(self, rpc: Stream) -> _AnswerStream:
        parse = _parser(rpc)

        async def answers(
            messages: AsyncIterator[bytes], call: Call
        ) -> AsyncGenerator[Sequence[bytes], None]:
            requests = (parse(message) async for message in messages)
            async for response in rpc.answer(requests, call):
                yield (response.SerializeToString(),)

        return self._streaming(rpc, answers)

    def _pipeline(self, rpc: Pipeline) -> _AnswerStream:
        answer_one = self._answer_one(rpc)

        def answers(messages: AsyncIterator[bytes], call: Call) -> _Groups:
            return pipelined(
                messages,
                lambda message: answer_one(message, call),
                max_in_flight=self._max_in_flight,
                deadline_s=call.deadline_s,
            )

        return self._streaming(rpc, answers)

    def _streaming(
        self,
        rpc: Stream | Pipeline,
        answers: Callable[[AsyncIterator[bytes], Call], _Groups],
    ) -> _AnswerStream:
        ended = self._metrics.rpc(rpc.method).ended

        async def answer(messages: AsyncIterator[bytes], call: Call) -> _Groups:
            started_s = time.perf_counter()
            self._name(call)
            code = Code.OK
            try:
                self._admit(rpc)
                self._authorize(rpc, call, "")
                async with aclosing(answers(messages, call)) as groups:
                    async for group in groups:
                        yield group
            except (asyncio.CancelledError, GeneratorExit):
                is_late = time.monotonic() >= call.deadline_s  # and the transport was first to see it
                code = Code.DEADLINE_EXCEEDED if is_late else Code.CANCELLED
                raise
            except Exception as error:
                status = self._status(rpc, call, error)
                code = status.code
                raise Failure(status) from error
            finally:
                ended(code.name, time.perf_counter() - started_s)

        return answer

    def _answer_one(self, rpc: Pipeline) -> Callable[[bytes, Call], Coroutine[Any, Any, bytes]]:
        """One message of a pipeline: whatever happens is answered in its place."""
        ended = self._metrics.rpc(rpc.method).message_ended
        parse = _parser(rpc)

        async def answer_one(message: bytes, call: Call) -> bytes:
            request: Any = None
            code = Code.OK
            self._running += 1
            try:
                request = parse(message)  # first: a refusal says of which request it is
                self._admit(rpc)
                self._authorize(rpc, call, getattr(request, rpc.model_field))
                response = await rpc.answer(request, call)
            except Exception as error:  # noqa: BLE001 - one bad message never ends the stream
                status = self._status(rpc, call, error)
                code = status.code
                response = rpc.refuse(parse(b"") if request is None else request, status)
            finally:
                self._leave()
            ended(code.name)
            return response if isinstance(response, bytes) else response.SerializeToString()

        return answer_one

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    def _name(self, call: Call) -> None:
        """Give the call an id: its caller's, where that cannot forge a log line."""
        given = call.metadata.get(REQUEST_ID_KEY)
        call.request_id = given if given and _REQUEST_ID.fullmatch(given) else next(self._ids)

    def _admit(self, rpc: Rpc) -> None:
        if self._draining and not rpc.is_open:
            raise ModelUnavailable("the server is stopping and takes no new calls")

    def _authorize(self, rpc: Rpc, call: Call, model: str) -> None:
        if self._tokens is not None and not rpc.is_open:
            self._tokens.check(call.metadata.get("authorization", ""), model)

    def _status(self, rpc: Rpc, call: Call, error: Exception) -> Status:
        """What the caller is told; of a failure that nobody foresaw, the log gets the rest."""
        if isinstance(error, Failure):  # of the transport, through the messages of a stream
            return error.status
        status = status_of(error, call.request_id)
        if status.code is Code.INTERNAL:
            _log.error(
                "call_failed", exc_info=error, extra={"method": rpc.method, "request_id": call.request_id}
            )
        return status


def _parser(rpc: Rpc) -> Callable[[bytes], Any]:
    from_bytes = rpc.parse or rpc.request.FromString

    def parse(message: bytes) -> Any:  # noqa: ANN401 - each row has its own type of message
        try:
            return from_bytes(message)
        except DecodeError as error:
            raise InvalidRequest(
                f"the request is no {rpc.request.DESCRIPTOR.full_name}: {len(message)} bytes"
            ) from error

    return parse


async def _in_time(work: Awaitable[Reply], deadline_s: float) -> Reply:
    try:
        async with asyncio.timeout_at(deadline_s):
            return await work
    except TimeoutError as timeout:
        raise DeadlineExceeded("the deadline passed before the answer was ready") from timeout
