"""Middleware of every RPC: ids, metrics, errors, parsing, deadlines, cancellation, draining."""

import asyncio
import math
import re
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.errors import Overloaded
from serving.metrics.recorder import Metrics
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.call_deadlines import END_US
from serving.rpc.handlers import Failure, Read, UnaryHandler
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Stream, Unary
from serving.rpc.status import Code
from serving.server import build_table
from serving.turns import TURN_US
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.counting_turns import CountingTurns, Loop
from tests.serving.gated_server import ServeGated
from tests.serving.rpc.reading import sent
from tests.serving.stub import Connect

CLASSIFY = "lenserve.v1.Classifier/Classify"
METHOD = "/tests.Echo/Say"

Answer = Callable[[Read, Call], Awaitable[bytes]]


def _count(registry: CollectorRegistry, method: str, code: str) -> float:
    return registry.get_sample_value("lenserve_requests_total", {"method": method, "code": code}) or 0


async def _echo(request: StringValue, call: Call) -> StringValue:
    return StringValue(value=f"{request.value} {call.request_id}")


async def _echo_each(requests: AsyncIterator[StringValue], call: Call) -> AsyncIterator[StringValue]:
    async for request in requests:
        if request.value == "full":
            raise Overloaded("full")
        yield await _echo(request, call)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0)


async def _messages(*values: str) -> AsyncIterator[bytes]:
    for value in values:
        yield StringValue(value=value).SerializeToString()


async def test_an_rpc_can_have_its_own_parser_and_answer_in_bytes() -> None:
    """The function takes what the parser returns; an answer in bytes is not changed."""

    def parse(data: bytes) -> list[str]:
        return [StringValue.FromString(data).value]

    async def answer(request: list[str], _call: Call) -> bytes:
        return repr(request).encode()

    row = Middleware(Metrics()).wrap(Unary(METHOD, StringValue, answer, parse=parse))

    assert await row.answer(sent(StringValue(value="a").SerializeToString()), Call({})) == b"['a']"
    with pytest.raises(
        Failure, match=r"cannot parse the request \(1 bytes\) as google\.protobuf\.StringValue"
    ):
        await row.answer(sent(b"\xff"), Call({}))


async def test_a_given_request_id_is_kept_and_a_missing_one_is_made() -> None:
    """The function sees the id of its client; without one, 16 hex digits that are new for every call."""
    echo = Middleware(Metrics()).wrap(Unary(METHOD, StringValue, _echo))

    given_one = await echo.answer(sent(), Call({"x-request-id": "order-7"}))
    made = [await echo.answer(sent(), Call({})) for _ in range(2)]

    assert StringValue.FromString(given_one).value == " order-7"
    ids = [StringValue.FromString(answer).value.strip() for answer in made]
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize("given_id", ["", "two words", "line\nbreak", "x" * 129, "käse"])
async def test_a_request_id_that_could_forge_a_log_line_is_replaced(given_id: str) -> None:
    """Only short ids of plain characters are kept."""
    call = Call({"x-request-id": given_id})

    await Middleware(Metrics()).wrap(Unary(METHOD, StringValue, _echo)).answer(sent(), call)

    assert re.fullmatch("[0-9a-f]{16}", call.request_id)


@pytest.mark.parametrize("is_refused", [False, True])
async def test_the_request_id_goes_back_over_the_channel(
    publish: Publish,
    serve: Serve,
    connect: Connect,
    *,
    is_refused: bool,
) -> None:
    """x-request-id is in the trailers of answers and failures, and in the ErrorInfo of failures."""
    publish()
    metadata = (("x-request-id", "order-7"),)
    async with serve() as server:
        stub = connect(server.grpc.port)
        if is_refused:
            refusal = await stub.refusal(CLASSIFY, pb.ClassifyRequest(model="no"), metadata=metadata)
            trailers = refusal.trailers
            assert refusal.request_id == "order-7"
        else:
            method = "inference.GRPCInferenceService/ServerLive"
            call = stub.start(method, oip.ServerLiveRequest(), metadata=metadata)
            await call
            trailers = dict(await call.trailing_metadata())

    assert trailers["x-request-id"] == "order-7"


async def test_calls_are_counted_by_method_and_code() -> None:
    """Every call is counted in one counter and one histogram, whatever its status."""
    metrics = Metrics()
    middleware = Middleware(metrics)

    async def answer(request: StringValue, _call: Call) -> StringValue:
        if request.value == "full":
            raise Overloaded("full")
        if request.value == "bug":
            raise KeyError("bug")
        return request

    row = middleware.wrap(Unary(METHOD, StringValue, answer))
    for value in ("", "", "full", "bug"):
        message = StringValue(value=value).SerializeToString()
        if value:
            with pytest.raises(Failure):
                await row.answer(sent(message), Call({}))
        else:
            await row.answer(sent(message), Call({}))

    codes = {
        code: _count(metrics.registry, METHOD, code) for code in ("OK", "RESOURCE_EXHAUSTED", "INTERNAL")
    }
    assert codes == {"OK": 2, "RESOURCE_EXHAUSTED": 1, "INTERNAL": 1}
    durations = metrics.registry.get_sample_value(
        "lenserve_request_duration_seconds_count", {"method": METHOD}
    )
    assert durations == 4


async def test_a_call_that_waits_for_its_turn_holds_its_request_once(
    publish: Publish, serve_gated: ServeGated
) -> None:
    """Not also as a message and as what was parsed from it; and once decoded, only as pixels."""
    publish()
    file = b"P6 1000 1000 255\n" + bytes(3_000_000)
    message = pb.ClassifyRequest(model="colours", images=[pb.Image(encoded=file)]).SerializeToString()

    async def read() -> bytes:
        return bytes(bytearray(message))  # a copy

    async with serve_gated() as server:
        rows = build_table(server.classifier, server.models, server.metrics)
        handler = server.middleware.wrap(next(row for row in rows if row.method == f"/{CLASSIFY}"))
        assert isinstance(handler, UnaryHandler)
        server.engine.close()
        tracemalloc.start()
        try:
            calls = [asyncio.create_task(_answered(handler, read)) for _ in range(4)]
            await asyncio.to_thread(server.engine.entered.wait, 10)
            await _until(lambda: tracemalloc.get_traced_memory()[0] < len(file))
        finally:
            tracemalloc.stop()
            server.engine.gate.set()
        await asyncio.gather(*calls)


async def _answered(handler: UnaryHandler, read: Read) -> bytes:
    return await handler.answer(read, Call({}))


async def test_a_cancelled_call_is_counted_as_cancelled(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Metrics say CANCELLED, its admission is released, and its work is not done."""
    publish()
    image = pb.Image(pixels=pb.Pixels(height=1, width=1, channels=1, data=b"0"))
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        running = stub.start(CLASSIFY, pb.ClassifyRequest(model="colours", images=[image]))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        waiting = stub.start(CLASSIFY, pb.ClassifyRequest(model="colours", images=[image] * 2))
        await _until(lambda: server.classifier.admission.pending == 3)
        waiting.cancel()
        await _until(lambda: server.classifier.admission.pending == 1)
        server.engine.gate.set()
        await running
        await stub.call(CLASSIFY, pb.ClassifyRequest(model="colours", images=[image] * 3))

    assert server.engine.runs == [1, 3]
    assert _count(server.metrics.registry, f"/{CLASSIFY}", "CANCELLED") == 1
    assert _count(server.metrics.registry, f"/{CLASSIFY}", "OK") == 2


async def test_idle_waits_for_running_calls() -> None:
    """idle() returns at once if nothing runs, otherwise when the last call has ended."""
    middleware = Middleware(Metrics())
    may_end = asyncio.Event()

    async def slow(request: StringValue, _call: Call) -> StringValue:
        await may_end.wait()
        return request

    row = middleware.wrap(Unary(METHOD, StringValue, slow))
    await middleware.idle()
    calls = [asyncio.ensure_future(row.answer(sent(), Call({}))) for _ in range(2)]
    await asyncio.sleep(0)  # both start
    idle = asyncio.create_task(middleware.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    may_end.set()
    await asyncio.gather(*calls)
    await asyncio.wait_for(idle, 1)


async def test_while_draining_new_calls_are_rejected_and_probes_answered() -> None:
    """New calls and streams are UNAVAILABLE; probes are answered."""
    middleware = Middleware(Metrics())
    call = middleware.wrap(Unary(METHOD, StringValue, _echo))
    stream = middleware.wrap(Stream(METHOD, StringValue, _echo_each))
    probe = middleware.wrap(Unary(METHOD, StringValue, _echo, is_probe=True))
    await middleware.drain()

    with pytest.raises(Failure) as refused:
        await call.answer(sent(), Call({}))
    with pytest.raises(Failure) as stream_refused:
        await anext(stream.answer(_messages("a"), Call({})))
    answered = await probe.answer(sent(), Call({"x-request-id": "p"}))

    assert refused.value.status.code is stream_refused.value.status.code is Code.UNAVAILABLE
    assert refused.value.status.message == "the server is stopping and accepts no new calls: try again"
    assert StringValue.FromString(answered).value == " p"


async def test_a_call_that_is_rejected_early_has_an_id_and_is_counted() -> None:
    """Only clients with a token learn that the server is full."""

    def full() -> None:
        raise Overloaded("full")

    async def unread() -> bytes:
        raise AssertionError("a rejected call was read")

    metrics = Metrics()
    tokens = Tokens({"secret": ["*"]})
    row = Middleware(metrics, tokens).wrap(Unary(METHOD, StringValue, _echo, admit=full))
    codes = []
    for metadata in ({}, {"authorization": "Bearer secret"}):
        call = Call(metadata)
        with pytest.raises(Failure) as refused:
            await row.answer(unread, call)
        assert call.request_id
        codes.append(refused.value.status.code)
    assert codes == [Code.UNAUTHENTICATED, Code.RESOURCE_EXHAUSTED]
    assert [_count(metrics.registry, METHOD, code.name) for code in codes] == [1, 1]


async def test_a_deadline_ends_the_work() -> None:
    """A function that runs at its deadline is cancelled, and the status is DEADLINE_EXCEEDED."""
    ended = []

    async def never(_request: StringValue, _call: Call) -> StringValue:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError

    row = Middleware(Metrics()).wrap(Unary(METHOD, StringValue, never))
    with pytest.raises(Failure) as caught:
        await row.answer(sent(), Call({}, deadline_s=time.monotonic() + 0.01))

    assert caught.value.status.code is Code.DEADLINE_EXCEEDED
    assert caught.value.status.message == "the deadline passed before the answer was ready"
    assert ended == [True]


async def test_calls_whose_deadlines_pass_together_end_a_part_in_each_turn() -> None:
    """Thousands in one turn kept the event loop from all others for 0.3 s."""
    row = Middleware(Metrics()).wrap(Unary(METHOD, StringValue, _echo))
    never = asyncio.Event()

    async def read() -> bytes:
        await never.wait()
        return b""

    loop, ended = Loop(), list[int]()
    deadline_s = time.monotonic() + 0.1

    async def call() -> None:
        with pytest.raises(Failure) as caught:
            await row.answer(read, Call({}, deadline_s=deadline_s))
        assert caught.value.status.code is Code.DEADLINE_EXCEEDED
        ended.append(loop.turn)

    await asyncio.gather(*(call() for _ in range(400)))
    loop.stop()
    assert len(set(ended)) >= 400 * END_US // TURN_US - 1


async def test_an_error_in_a_stream_ends_it_with_its_status() -> None:
    """Answers before the error are sent; the error becomes the status of the stream and is counted."""
    metrics = Metrics()
    row = Middleware(metrics).wrap(Stream(METHOD, StringValue, _echo_each))
    answers = row.answer(_messages("a", "full", "b"), Call({"x-request-id": "i"}))

    (first,) = await anext(answers)
    with pytest.raises(Failure) as caught:
        await anext(answers)

    assert StringValue.FromString(first).value == "a i"
    assert caught.value.status.code is Code.RESOURCE_EXHAUSTED
    assert _count(metrics.registry, METHOD, "RESOURCE_EXHAUSTED") == 1


async def test_a_stream_that_is_closed_early_is_counted_as_cancelled() -> None:
    """It is not an error."""
    metrics = Metrics()
    row = Middleware(metrics).wrap(Stream(METHOD, StringValue, _echo_each))
    answers = row.answer(_messages("a", "b"), Call({}))
    await anext(answers)

    await answers.aclose()

    assert _count(metrics.registry, METHOD, "CANCELLED") == 1


@pytest.fixture
async def wired(publish: Publish, serve: Serve) -> AsyncIterator[dict[str, Answer]]:
    """Every unary RPC of a real server as a transport sees it: method -> function from bytes to bytes."""
    publish()
    async with serve() as server:
        table = build_table(server.classifier, server.models, server.metrics, model_control=True)
        rows = map(server.middleware.wrap, table)
        yield {row.method[1:]: row.answer for row in rows if isinstance(row, UnaryHandler)}


# Fields with strings and bytes: more often close to a message than random bytes are.
_FIELDS = st.tuples(st.integers(0, 130), st.binary(max_size=20)).map(
    lambda pair: bytes([pair[0], len(pair[1])]) + pair[1]
)
_NOISE = st.one_of(st.binary(max_size=64), st.lists(_FIELDS, max_size=6).map(b"".join))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=_NOISE)
async def test_random_bytes_never_give_internal(wired: dict[str, Answer], message: bytes) -> None:
    """Random bytes for any method are answered, or are the client's error."""
    for method, answer in wired.items():
        try:
            await answer(sent(message), Call({}))
            code = Code.OK
        except Failure as failure:
            code = failure.status.code
        assert code in {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.UNIMPLEMENTED}, method


async def test_bytes_that_cannot_be_parsed_are_an_invalid_argument(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """The message names the expected type and the number of bytes."""
    publish()
    async with serve() as server:
        refusal = await connect(server.grpc.port).refusal(CLASSIFY, b"\xff\xff\xff")

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refusal.message == "cannot parse the request (3 bytes) as lenserve.v1.ClassifyRequest"


def test_a_call_has_no_deadline_by_default() -> None:
    """The default is infinite."""
    assert Call({}).deadline_s == math.inf


@pytest.mark.parametrize(("size", "slices"), [(1000, 0), (3 * 2**20, 2)])
async def test_a_large_message_is_parsed_in_its_own_turns(size: int, slices: int) -> None:
    """Each copy of 60 MB takes 25 ms: parsing it is one slice of work, using it is another."""
    turns = CountingTurns()
    row = Middleware(Metrics(), turns=turns).wrap(Unary(METHOD, StringValue, _echo, parse=_size_of))

    answered = await row.answer(sent(bytes(size)), Call({"x-request-id": "i"}))

    assert StringValue.FromString(answered).value == f"{size} i"
    assert turns.costs_us == [size // 2000] * slices


def _size_of(message: bytes) -> StringValue:
    return StringValue(value=str(len(message)))
