"""grpc.aio as a transport: ports, sizes, compression, deadlines, and a graceful stop."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health_pb2

from serving.errors import AddressUnavailable
from serving.metrics import Metrics
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.transport.around import Around
from serving.transport.grpc_server import GrpcServer
from serving.transport.table import Call, Stream, Unary

CLASSIFY = "lenserve.v1.Classifier/Classify"


async def _echo(request: BytesValue, _call: Call) -> BytesValue:
    return request


async def _each(requests: AsyncIterator[BytesValue], _call: Call) -> AsyncIterator[BytesValue]:
    async for request in requests:
        yield request


def _server(
    *rows: Unary | Stream, around: Around | None = None, max_message_bytes: int = 2**20
) -> GrpcServer:
    around = around or Around(Metrics())
    return GrpcServer(
        [around.wrap(row) for row in rows], host="127.0.0.1", port=0, max_message_bytes=max_message_bytes
    )


async def test_port_0_becomes_a_free_port() -> None:
    """After it has started a server knows its port."""
    async with _server() as first, _server() as second:
        assert 0 < first.port != second.port > 0


async def test_a_port_that_is_taken_is_an_error() -> None:
    """Two servers never share a port, not even by accident."""
    async with _server() as first:
        second = GrpcServer([], host="127.0.0.1", port=first.port, max_message_bytes=2**20)
        with pytest.raises(AddressUnavailable, match=f"gRPC cannot listen on 127.0.0.1:{first.port}"):
            await second.__aenter__()


async def test_an_unknown_method_is_unimplemented(connect: Callable[..., Any]) -> None:
    """A method that is in no row is UNIMPLEMENTED."""
    async with _server() as server:
        refusal = await connect(server.port).refusal(CLASSIFY, pb.ClassifyRequest())

    assert refusal.code == "UNIMPLEMENTED"


async def test_a_message_over_the_limit_is_refused_unread_with_both_numbers() -> None:
    """The library itself refuses it, with the length and the limit; the largest allowed passes."""
    fits = BytesValue(value=bytes(2**20 - 5))
    async with _server(Unary("/tests.Echo/Say", BytesValue, _echo)) as server, _channel(server) as channel:
        say = channel.unary_unary("/tests.Echo/Say", BytesValue.SerializeToString, BytesValue.FromString)
        assert fits.ByteSize() <= 2**20
        answer = await say(fits)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(BytesValue(value=bytes(2**20)))

    assert answer == fits
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(r"larger than max \(1048580 vs\. 1048576\)", caught.value.details() or "")


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(
    publish: Callable[..., object],
    serve: Callable[..., Any],
    connect: Callable[..., Any],
    compression: grpc.Compression,
) -> None:
    """Clients may compress."""
    publish()
    image = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=bytes([255, 0, 0] * 64)))
    async with serve() as server:
        stub = connect(server.grpc.port, compression=compression)
        answer = await stub.call(CLASSIFY, pb.ClassifyRequest(model="colours", images=[image]))

    assert answer.predictions[0].ranking.labels[0].label == "red"


async def test_the_deadline_of_a_call_reaches_the_function(connect: Callable[..., Any]) -> None:
    """It is told on the clock of time.monotonic(), and is infinite where the client set none."""
    seen: list[float] = []

    async def answer(_request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        seen.append(call.deadline_s - time.monotonic())
        return health_pb2.HealthCheckResponse()

    check = "grpc.health.v1.Health/Check"
    async with _server(Unary(f"/{check}", health_pb2.HealthCheckRequest, answer)) as server:
        stub = connect(server.port)
        await stub.call(check, health_pb2.HealthCheckRequest(), timeout=30)
        await stub.call(check, health_pb2.HealthCheckRequest())

    assert 25 < seen[0] < 31
    assert seen[1] == float("inf")


async def test_text_metadata_reaches_the_function_and_binary_does_not(connect: Callable[..., Any]) -> None:
    """Keys are lower case, values are strings."""
    seen: list[dict[str, str]] = []

    async def answer(_request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        seen.append(dict(call.metadata))
        return health_pb2.HealthCheckResponse()

    check = "grpc.health.v1.Health/Check"
    async with _server(Unary(f"/{check}", health_pb2.HealthCheckRequest, answer)) as server:
        metadata = (("authorization", "Bearer x"), ("some-bin", b"\x00"))
        await connect(server.port).call(check, health_pb2.HealthCheckRequest(), metadata=metadata)

    assert seen[0]["authorization"] == "Bearer x"
    assert "some-bin" not in seen[0]


async def test_stop_lets_running_calls_end_and_their_answers_arrive() -> None:
    """Many calls that run when the stop begins are all answered, in full, however large the answer."""
    may_end = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def slow(request: BytesValue, _call: Call) -> BytesValue:
        begun.release()
        await may_end.wait()
        return request

    around = Around(Metrics())
    row = Unary("/tests.Echo/Say", BytesValue, slow)
    async with _server(row, around=around) as server, _channel(server) as channel:
        say = channel.unary_unary(row.method, BytesValue.SerializeToString, BytesValue.FromString)
        calls = [say(BytesValue(value=bytes(900_000))) for _ in range(8)]
        for _ in calls:
            await asyncio.wait_for(begun.acquire(), 10)
        stopping = asyncio.create_task(server.stop(until=around.drain, timeout_s=20))
        await asyncio.sleep(0)
        may_end.set()
        answers = await asyncio.gather(*calls)
        await stopping

    assert [len(answer.value) for answer in answers] == [900_000] * 8


async def test_stop_cuts_what_runs_beyond_its_time() -> None:
    """A call that never ends cannot hold up a stop."""
    begun = asyncio.Event()

    async def never(_request: BytesValue, _call: Call) -> BytesValue:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    around = Around(Metrics())
    row = Unary("/tests.Echo/Say", BytesValue, never)
    async with _server(row, around=around) as server, _channel(server) as channel:
        call = channel.unary_unary(row.method, BytesValue.SerializeToString, BytesValue.FromString)(
            BytesValue()
        )
        await asyncio.wait_for(begun.wait(), 10)
        started_s = time.monotonic()
        await server.stop(until=around.drain, timeout_s=0.1)
        with pytest.raises(grpc.aio.AioRpcError):
            await call

    assert time.monotonic() - started_s < 3
    await asyncio.wait_for(around.idle(), 3)


async def test_stop_cuts_open_streams_when_calls_are_done() -> None:
    """A stream that its client keeps open does not use up the whole time of a stop."""
    around = Around(Metrics())
    row = Stream("/tests.Echo/Each", BytesValue, _each)
    async with _server(row, around=around) as server, _channel(server) as channel:
        call = channel.stream_stream(row.method, BytesValue.SerializeToString, BytesValue.FromString)()
        await call.write(BytesValue(value=b"1"))
        assert (await call.read()).value == b"1"
        started_s = time.monotonic()
        await server.stop(until=around.drain, timeout_s=30)

    assert time.monotonic() - started_s < 5


def _channel(server: GrpcServer) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)])
