"""gRPC's own interoperability cases, from its doc/interop-test-descriptions.md, as far as they apply."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, Int64Value, StringValue

from tests.serving.transports.conformance.methods import Channels, Methods, failure_of
from tests.serving.transports.conformance.served import Served

REQUEST_BYTES = 271_828
SIZES = (27_182, 8, 1_828, 45_904)
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP \U0001f608\t\n"


async def test_empty_unary(methods: Methods) -> None:
    """An empty message in both directions."""
    assert await methods.unary("Nothing", Empty)(Empty()) == Empty()


async def test_large_unary(methods: Methods) -> None:
    """Many frames in both directions."""
    message = BytesValue(value=bytes(range(256)) * (REQUEST_BYTES // 256))
    assert await methods.unary("Say")(message) == message


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_client_compressed_unary(
    served: Served, channels: Channels, compression: grpc.Compression
) -> None:
    """Compressed requests are read, and their client can read the answer."""
    methods = channels(served, compression=compression)
    message = BytesValue(value=bytes(REQUEST_BYTES))
    assert await methods.unary("Say")(message) == message
    assert [each async for each in methods.stream("Each")(iter([message] * 3))] == [message] * 3


async def test_client_streaming(served: Served, methods: Methods) -> None:
    """Several messages in, one out."""
    served.echo.may_end.set()
    messages = iter([BytesValue(value=bytes(size)) for size in SIZES])
    assert (await methods.client_stream("Sum", Int64Value)(messages)).value == sum(SIZES)


async def test_server_streaming(methods: Methods) -> None:
    """One message in, several out, in order."""
    answers = [each.value async for each in methods.server_stream("Count")(StringValue(value="4 31415"))]
    assert [int.from_bytes(each[:4], "big") for each in answers] == [0, 1, 2, 3]
    assert {len(each) for each in answers} == {31_415}


async def test_ping_pong(methods: Methods) -> None:
    """Every answer arrives before the next request is sent."""
    call = methods.stream("Each")()
    for size in SIZES:
        await call.write(BytesValue(value=bytes(size)))
        assert len((await call.read()).value) == size
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_empty_stream(methods: Methods) -> None:
    """No message in, none out, status OK."""
    call = methods.stream("Each")(iter(()))
    assert [each async for each in call] == []
    assert await call.code() is grpc.StatusCode.OK


async def test_cancel_after_begin(served: Served, methods: Methods) -> None:
    """The client cancels before it has sent anything."""
    call = methods.stream("Each")()
    await asyncio.wait_for(served.echo.begun.acquire(), 10)
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await asyncio.wait_for(served.echo.cancelled.acquire(), 10)


async def test_cancel_after_first_response(served: Served, methods: Methods) -> None:
    """The client cancels in the middle of a stream."""
    call = methods.stream("Each")()
    await call.write(BytesValue(value=b"1"))
    assert (await call.read()).value == b"1"
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await asyncio.wait_for(served.echo.cancelled.acquire(), 10)


async def test_cancelled_unary(served: Served, methods: Methods) -> None:
    """The function of a cancelled call is cancelled, and the call is counted as cancelled."""
    call = methods.unary("Wait")(BytesValue(value=b"1"))
    await asyncio.wait_for(served.echo.begun.acquire(), 10)
    call.cancel()
    await asyncio.wait_for(served.echo.cancelled.acquire(), 10)
    await asyncio.wait_for(served.middleware.idle(), 10)
    labels = {"method": "/tests.Echo/Wait", "code": "CANCELLED"}
    assert served.metrics.registry.get_sample_value("lenserve_requests_total", labels) == 1


@pytest.mark.parametrize("method", ["Wait", "WaitStream"])
async def test_timeout_on_sleeping_server(served: Served, methods: Methods, method: str) -> None:
    """Both sides stop at the deadline."""
    if method == "Wait":
        call = methods.unary(method)(BytesValue(), timeout=0.1)
    else:
        call = methods.stream(method)(timeout=0.1)
    await asyncio.wait_for(served.echo.begun.acquire(), 10)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(served.echo.cancelled.acquire(), 10)


async def test_custom_metadata(methods: Methods) -> None:
    """Text metadata goes in, x-request-id comes back with answers and with streams."""
    metadata = (("x-request-id", "order-7"), ("x-text", "a, b; c=d"), ("x-data-bin", b"\xab\xab\xab\x00"))
    call = methods.unary("Metadata", StringValue)(Empty(), metadata=metadata)
    received = (await call).value
    assert '"x-text": "a, b; c=d"' in received
    assert "x-data-bin" not in received  # functions do not get binary metadata
    assert dict(await call.trailing_metadata())["x-request-id"] == "order-7"

    stream = methods.stream("Each")(_one(BytesValue(value=b"1")), metadata=metadata)
    assert [each.value async for each in stream] == [b"1"]
    assert stream.done()


async def test_status_code_and_message(methods: Methods) -> None:
    """For a unary call, and for a stream before and after its first answer."""
    message = "UnknownModel there is no model 'x': 100% sure"
    for call in (
        methods.unary("Fail", StringValue)(StringValue(value=message)),
        methods.stream("FailAfterOne", StringValue)(_one(StringValue(value=message))),
    ):
        error = await failure_of(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "there is no model 'x': 100% sure"


async def test_special_status_message(methods: Methods) -> None:
    """White space and Unicode in a message arrive unchanged."""
    error = await failure_of(methods.unary("Fail")(StringValue(value="InvalidRequest " + SPECIAL)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == SPECIAL


@pytest.mark.parametrize("name", ["/tests.Echo/Nowhere", "/tests.Nobody/Say", "/", "/a/b/c"])
async def test_unimplemented_method_and_service(methods: Methods, name: str) -> None:
    """Both are UNIMPLEMENTED."""
    assert (await failure_of(methods.channel.unary_unary(name)(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def _one(message: Message) -> AsyncIterator[Message]:
    yield message
