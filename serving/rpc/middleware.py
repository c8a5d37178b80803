"""Wraps every RPC: request ids, metrics, errors, parsing, tokens, deadlines. Independent of RPC libraries."""

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, overload

from google.protobuf.message import DecodeError

from serving.errors import DeadlineExceeded, InvalidRequest, ModelUnavailable, UnknownModel, forget_frames
from serving.metrics.recorder import Metrics
from serving.rpc.access_log import AccessLog
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.call_deadlines import end_at
from serving.rpc.cancellation import code_of_cancelled
from serving.rpc.field_limit import leading_fields, limited_parser
from serving.rpc.handlers import (
    REQUEST_ID_KEY,
    AnswerGroups,
    AnswerStream,
    Failure,
    Handler,
    Read,
    Reject,
    StreamHandler,
    UnaryHandler,
)
from serving.rpc.ordered_stream import answer_in_order
from serving.rpc.routes import AdmitNamed, Call, Pipeline, Reply, Rpc, Stream, Unary
from serving.rpc.status import Code, Status, status_of
from serving.turns import LARGE_BYTES, Turns, copy_us

DEFAULT_MAX_IN_FLIGHT = 64

_UNKNOWN = "unknown"  # one label for all methods that do not exist: clients must not create series
_OK = Code.OK.name  # reading `name` of an enum member takes 0.2 us
# Calls that classify are counted from 0 on with these: alerts read increases, and miss one from nothing to 1.
_ALERT_CODES = (
    _OK,
    Code.DEADLINE_EXCEEDED.name,
    Code.RESOURCE_EXHAUSTED.name,
    Code.INTERNAL.name,
    Code.UNAVAILABLE.name,
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = logging.getLogger(__name__)


class Middleware:
    """Wraps RPCs, and counts running calls, which a graceful stop waits for."""

    def __init__(
        self,
        metrics: Metrics,
        tokens: Tokens | None = None,
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        turns: Turns | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._max_in_flight = max_in_flight
        self._running = 0
        self.turns = turns or Turns()
        self._idle = asyncio.Event()
        self._draining = False
        self._access_log = access_log
        self.reject_unknown = self._rejecting(_UNKNOWN)  # calls of methods that do not exist
        if access_log is not None:
            self.reject_unknown = access_log.rejecting(_UNKNOWN, self.reject_unknown)
        self._ids = map(f"{secrets.token_hex(4)}%08x".__mod__, itertools.count())

    @property
    def is_idle(self) -> bool:
        """Whether no unary call and no pipeline message is running."""
        return not self._running

    async def idle(self) -> None:
        """Wait until all unary calls and pipeline messages have ended. Transports end streams."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    async def drain(self) -> None:
        """Reject new calls and pipeline messages, except probes, and wait until all others have ended."""
        self._draining = True
        await self.idle()

    @overload
    def wrap(self, rpc: Unary) -> UnaryHandler: ...

    @overload
    def wrap(self, rpc: Stream | Pipeline) -> StreamHandler: ...

    @overload
    def wrap(self, rpc: Rpc) -> Handler: ...

    def wrap(self, rpc: Rpc) -> Handler:
        """Return the handler of an RPC, for transports."""
        if self._access_log is None:
            return self._wrap(rpc)
        return self._access_log.wrap(self._wrap(_noting_model(rpc)))

    def _wrap(self, rpc: Rpc) -> Handler:
        recorder = self._metrics.rpc(rpc.method, rpc.grpc_type)
        recorder.show_zeros(_ALERT_CODES if isinstance(rpc, Pipeline) or _takes_room(rpc) else (_OK,))
        if isinstance(rpc, Stream):
            return StreamHandler(rpc.method, self._stream(rpc), self._rejecting(rpc.method))
        if isinstance(rpc, Pipeline):
            return StreamHandler(
                rpc.method, self._pipeline(rpc), self._rejecting(rpc.method), answers_each=True
            )
        return UnaryHandler(rpc.method, self._unary(rpc), self._rejecting(rpc.method))

    def _rejecting(self, method: str) -> Reject:
        recorder = self._metrics.rpc(method)
        record_call, started = recorder.record_call, recorder.started

        def reject(call: Call, status: Status) -> None:
            started.value += 1
            self._set_request_id(call)
            record_call(status.code.name, 0.0)

        return reject

    def _unary(self, rpc: Unary) -> Callable[[bytes | Read, Call], Awaitable[bytes]]:
        # No context managers: each would cost 0.9 us of the 34 us of a LeNet-5 request.
        recorder = self._metrics.rpc(rpc.method)
        record_call, started = recorder.record_call, recorder.started
        read_and_compute, check_room = self._read_and_compute(rpc), rpc.admit
        tokens, is_probe = self._tokens, rpc.is_probe

        async def answer(read: bytes | Read, call: Call) -> bytes:
            started.value += 1
            self._set_request_id(call)
            code = _OK
            try:
                # Nothing is read before it is known that the call is allowed, and then that there is room:
                # clients without a token do not learn how busy the server is.
                if self._draining:
                    self._check_not_stopping(rpc)
                if tokens is not None:
                    _authenticate(tokens, call, is_probe=is_probe)
                if check_room is not None:
                    check_room()
                work = read_and_compute(read, call)
                response = await (
                    work if call.deadline_s == math.inf else _in_time(work, call.deadline_s, self.turns)
                )
                return response if isinstance(response, bytes) else response.SerializeToString()
            except (asyncio.CancelledError, GeneratorExit):
                code = code_of_cancelled(call.deadline_s, call.received_s).name
                raise
            except Exception as error:  # noqa: BLE001 - becomes the status of the call
                status = self._status(rpc, call, error)
                code = status.code.name
                raise Failure(status) from None
            finally:
                record_call(code, time.perf_counter() - call.received_s if call.received_s else 0.0)

        return answer

    def _read_and_compute(self, rpc: Unary) -> Callable[[bytes | Read, Call], Coroutine[Any, Any, Reply]]:
        parse, compute, model_field = _parser(rpc), rpc.answer, rpc.model_field
        admit = rpc.admit_named
        check_beginning = None if admit is None else partial(_check_beginning, rpc, admit)

        async def read_and_compute(read: bytes | Read, call: Call) -> Reply:
            if isinstance(read, bytes):
                message = read
            else:
                if check_beginning is not None:
                    call.check_beginning = check_beginning
                message = await read()
            call.received_s = time.perf_counter()
            self._running += 1
            try:
                if self._draining:  # since the call was admitted
                    self._check_not_stopping(rpc)
                if (size_bytes := len(message)) <= LARGE_BYTES:
                    request = parse(message)
                else:  # its copies take long: this one, and that of its images, until which it is held once
                    await self.turns.take(copy_us(size_bytes))
                    request, message = parse(message), b""
                    await self.turns.take(copy_us(size_bytes))
                if call.grant is not None and model_field:
                    call.grant.check(getattr(request, model_field))
                work = compute(request, call)
                del message, request  # a request that waits is held once: the images that `compute` keeps
                return await work
            finally:
                self._end_call()

        return read_and_compute

    def _stream(self, rpc: Stream) -> AnswerStream:
        parse = _parser(rpc)

        async def answers(
            messages: AsyncIterator[bytes], call: Call
        ) -> AsyncGenerator[Sequence[bytes], None]:
            requests = (parse(message) async for message in messages)
            async for response in rpc.answer(requests, call):
                yield (response.SerializeToString(),)

        return self._streaming(rpc, answers)

    def _pipeline(self, rpc: Pipeline) -> AnswerStream:
        answer_one = self._answer_one(rpc)

        def answers(messages: AsyncIterator[bytes], call: Call) -> AnswerGroups:
            return answer_in_order(
                messages,
                partial(answer_one, call),
                max_in_flight=self._max_in_flight,
                deadline_s=call.deadline_s,
                turns=self.turns,
            )

        return self._streaming(rpc, answers)

    def _streaming(
        self,
        rpc: Stream | Pipeline,
        answers: Callable[[AsyncIterator[bytes], Call], AnswerGroups],
    ) -> AnswerStream:
        recorder = self._metrics.rpc(rpc.method)
        record_call, started = recorder.record_call, recorder.started

        async def answer(messages: AsyncIterator[bytes], call: Call) -> AnswerGroups:
            started.value += 1
            started_s = time.perf_counter()
            self._set_request_id(call)
            code = _OK
            try:
                self._check_not_stopping(rpc)
                if self._tokens is not None:
                    _authenticate(self._tokens, call, is_probe=rpc.is_probe)
                async with aclosing(answers(messages, call)) as groups:
                    async for group in groups:
                        yield group
            except (asyncio.CancelledError, GeneratorExit):
                code = code_of_cancelled(call.deadline_s, started_s).name
                raise
            except Exception as error:  # noqa: BLE001 - becomes the status of the call
                status = self._status(rpc, call, error)
                code = status.code.name
                raise Failure(status) from None
            finally:
                record_call(code, time.perf_counter() - started_s)

        return answer

    def _answer_one(self, rpc: Pipeline) -> Callable[[Call, bytes], Coroutine[Any, Any, bytes]]:
        """Answer one message of a pipeline. A failure is an answer too."""
        record_message = self._metrics.rpc(rpc.method).record_message
        parse = _parser(rpc)

        async def answer_one(call: Call, message: bytes) -> bytes:
            request: Any = None
            code = _OK
            self._running += 1
            try:
                # First, so that a rejection has the request id.
                if (size_bytes := len(message)) <= LARGE_BYTES:
                    request = parse(message)
                else:  # its copies take long: this one, and that of its images, until which it is held once
                    await self.turns.take(copy_us(size_bytes))
                    request, message = parse(message), b""
                    await self.turns.take(copy_us(size_bytes))
                if self._draining:
                    self._check_not_stopping(rpc)
                if call.grant is not None:
                    call.grant.check(getattr(request, rpc.model_field))
                response = await rpc.answer(request, call)
            except Exception as error:  # noqa: BLE001 - a failed message must not end the stream
                status = self._status(rpc, call, error).shortened()
                code = status.code.name
                response = rpc.refuse(parse(b"") if request is None else request, status)
            finally:
                self._end_call()
            record_message(code)
            return response if isinstance(response, bytes) else response.SerializeToString()

        return answer_one

    def _end_call(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    def _set_request_id(self, call: Call) -> None:
        """Use the client's request id if it cannot forge a log line, otherwise create one."""
        given = call.metadata.get(REQUEST_ID_KEY)
        call.request_id = given if given and _REQUEST_ID.fullmatch(given) else next(self._ids)

    def _check_not_stopping(self, rpc: Rpc) -> None:
        if self._draining and not rpc.is_probe:
            raise ModelUnavailable("the server is stopping and accepts no new calls: try again")

    def _status(self, rpc: Rpc, call: Call, error: Exception) -> Status:
        """Return the status for the client. An unexpected error is logged with its traceback."""
        if isinstance(error, Failure):  # raised by the transport while reading messages
            status = error.status
        else:
            if call.grant is not None and isinstance(error, UnknownModel) and error.known is not None:
                error.known = tuple(filter(call.grant.allows, error.known))
            status = status_of(error, call.request_id)
            fields = {"method": rpc.method, "request_id": call.request_id}
            if status.code is Code.INTERNAL:
                _log.error("call_failed", exc_info=error, extra=fields)
            elif isinstance(error, MemoryError):
                _log.warning("out_of_memory", extra=fields)
        forget_frames(error)  # the failed request is no longer needed
        return status


def _takes_room(rpc: Rpc) -> bool:
    return isinstance(rpc, Unary) and rpc.admit is not None


def _noting_model(rpc: Rpc) -> Rpc:
    """Return an RPC that notes the model of a request in its call."""
    if isinstance(rpc, Stream) or not rpc.model_field:
        return rpc
    answer, model_field = rpc.answer, rpc.model_field

    async def note_and_answer(request: Any, call: Call) -> Reply:  # noqa: ANN401 - any message
        call.model = getattr(request, model_field)
        return await answer(request, call)

    return replace(rpc, answer=note_and_answer)


def _check_beginning(rpc: Unary, admit: AdmitNamed, beginning: bytes, call: Call) -> None:
    fields = leading_fields(beginning, admit.contents_field)
    if not fields:
        return
    try:
        request = rpc.request.FromString(fields)
    except DecodeError:  # it is reported when the whole message is read
        return
    if not getattr(request, rpc.model_field):  # written in another order
        return
    if call.grant is not None:
        call.grant.check(getattr(request, rpc.model_field))
    admit.check(request, call)


def _authenticate(tokens: Tokens, call: Call, *, is_probe: bool) -> None:
    authorization = call.metadata.get("authorization", "")
    call.grant = tokens.grant_to_probe(authorization) if is_probe else tokens.grant(authorization)


def _parser(rpc: Rpc) -> Callable[[bytes], Any]:
    from_bytes = rpc.parse or limited_parser(rpc.request)

    def parse(message: bytes) -> Any:  # noqa: ANN401 - each RPC has its own type of message
        try:
            return from_bytes(message)
        except DecodeError as error:
            raise InvalidRequest(
                f"cannot parse the request ({len(message)} bytes) as {rpc.request.DESCRIPTOR.full_name}"
            ) from error

    return parse


async def _in_time(work: Awaitable[Reply], deadline_s: float, turns: Turns) -> Reply:
    deadline = asyncio.timeout(None)
    timer = end_at(deadline_s, deadline, turns)
    try:
        async with deadline:
            return await work
    except TimeoutError as timeout:
        if not deadline.expired():  # raised by the work: a slow disk, for example
            raise
        raise DeadlineExceeded("the deadline passed before the answer was ready") from timeout
    finally:
        timer.cancel()
        del deadline, timer  # they hold the task: a reference cycle
