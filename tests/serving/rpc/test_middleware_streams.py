"""Middleware for each message of a pipeline: errors in order, tokens, counting, draining."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from serving.errors import InvalidRequest, Overloaded
from serving.metrics.recorder import Metrics
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.handlers import Failure, StreamHandler
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Pipeline
from serving.rpc.status import MAX_MESSAGE_CHARACTERS, Code, Status

METHOD = "/tests.Echo/Say"


async def _echo(request: StringValue, call: Call) -> StringValue:
    return StringValue(value=f"{request.value} {call.request_id}")


async def _messages(*values: str) -> AsyncIterator[bytes]:
    for value in values:
        yield StringValue(value=value).SerializeToString()


async def _unless_full(request: StringValue, call: Call) -> StringValue:
    """Echo; but `full` is rejected, and `bug` raises an unexpected error."""
    await asyncio.sleep(0)
    if request.value == "full":
        raise Overloaded("the queue is full")
    if request.value == "bug":
        raise RuntimeError("secret")
    return await _echo(request, call)


def _refuse(request: StringValue, status: Status) -> StringValue:
    return StringValue(value=f"{request.value!r} {status.code.name}")


PIPELINE = Pipeline(METHOD, StringValue, _unless_full, _refuse, model_field="value")


async def _values(row: StreamHandler, messages: AsyncIterator[bytes], call: Call) -> list[str]:
    groups = row.answer(messages, call)
    return [StringValue.FromString(answer).value async for group in groups for answer in group]


async def test_a_failed_message_is_answered_and_the_stream_continues() -> None:
    """Rejected, failed or not a message: each has its status in its place, and is counted."""
    metrics = Metrics()

    async def messages() -> AsyncIterator[bytes]:
        async for message in _messages("a", "full", "bug"):
            yield message
        yield b"\xff\xff"
        yield StringValue(value="b").SerializeToString()

    answers = await _values(Middleware(metrics).wrap(PIPELINE), messages(), Call({"x-request-id": "i"}))

    assert answers == ["a i", "'full' RESOURCE_EXHAUSTED", "'bug' INTERNAL", "'' INVALID_ARGUMENT", "b i"]
    counts = {
        code: metrics.registry.get_sample_value(
            "lenserve_stream_messages_total", {"method": METHOD, "code": code}
        )
        for code in ("OK", "RESOURCE_EXHAUSTED", "INTERNAL", "INVALID_ARGUMENT")
    }
    assert counts == {"OK": 2, "RESOURCE_EXHAUSTED": 1, "INTERNAL": 1, "INVALID_ARGUMENT": 1}
    ended = {"method": METHOD, "code": "OK"}
    assert metrics.registry.get_sample_value("lenserve_requests_total", ended) == 1


async def test_the_error_of_a_message_is_short() -> None:
    """It may quote the request: 64 in flight of a megabyte each would be answers that no budget counts."""

    async def echo_error(request: StringValue, _call: Call) -> StringValue:
        raise InvalidRequest(repr(request.value))

    def refuse(_request: StringValue, status: Status) -> StringValue:
        return StringValue(value=status.message)

    row = Middleware(Metrics()).wrap(Pipeline(METHOD, StringValue, echo_error, refuse, model_field="value"))
    (answer,) = await _values(row, _messages("\0" * 10_000), Call({}))
    assert len(answer) == MAX_MESSAGE_CHARACTERS
    assert answer.endswith("…")


async def test_a_token_is_checked_for_the_stream_and_for_the_model_of_every_message() -> None:
    """A stream without a token ends at once; for a message about another model only that one is rejected."""
    row = Middleware(Metrics(), Tokens({"secret": ["digits"]})).wrap(PIPELINE)
    call = Call({"authorization": "Bearer secret", "x-request-id": "i"})

    with pytest.raises(Failure) as stranger:
        await _values(row, _messages("digits"), Call({}))
    answers = await _values(row, _messages("digits", "x-rays"), call)

    assert stranger.value.status.code is Code.UNAUTHENTICATED
    assert answers == ["digits i", "'x-rays' PERMISSION_DENIED"]


async def test_a_drain_waits_for_messages_and_rejects_later_ones() -> None:
    """Messages in flight are answered; later ones of an open stream are each rejected."""
    middleware = Middleware(Metrics())
    sending: asyncio.Queue[bytes] = asyncio.Queue()
    may_end = asyncio.Event()
    begun = asyncio.Event()

    async def slow(request: StringValue, call: Call) -> StringValue:
        begun.set()
        await may_end.wait()
        return await _echo(request, call)

    async def messages() -> AsyncIterator[bytes]:
        while True:
            yield await sending.get()

    row = middleware.wrap(Pipeline(METHOD, StringValue, slow, _refuse, model_field="value"))
    answers = row.answer(messages(), Call({"x-request-id": "i"}))
    sending.put_nowait(StringValue(value="a").SerializeToString())
    first = asyncio.create_task(anext(answers))
    await begun.wait()
    drained = asyncio.create_task(middleware.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    may_end.set()

    (answer,) = await first
    assert StringValue.FromString(answer).value == "a i"
    await asyncio.wait_for(drained, 1)
    sending.put_nowait(StringValue(value="b").SerializeToString())
    (answer,) = await anext(answers)
    assert StringValue.FromString(answer).value == "'b' UNAVAILABLE"
    await answers.aclose()
