"""Every call that got a stream is counted once, whatever ends it, on every wire; deadlines as deadlines."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2

from serving.metrics.recorder import Metrics
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.handlers import Failure
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Stream, Unary
from serving.rpc.status import Code
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import ServeGated
from tests.serving.rpc.reading import sent
from tests.serving.stub import Connect
from tests.serving.transports.raw_connection import RawConnection
from tests.serving.until import until

UNARY = "/lenserve.v1.Classifier/Classify"
STREAM = "/lenserve.v1.Classifier/ClassifyStream"
WATCH = "/grpc.health.v1.Health/Watch"
TOKEN = ("authorization", "Bearer secret")
IMAGE = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=bytes(192)))
GOOD = pb.ClassifyRequest(model="colours", images=[IMAGE]).SerializeToString()
LARGE = pb.ClassifyRequest(
    model="colours", images=[pb.Image(encoded=b"P6 140 140 255\n" + bytes(140 * 140 * 3))]
).SerializeToString()


def _framed(message: bytes, *, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def _total(metrics: Metrics) -> int:
    return round(sum(each.value for _, each in metrics.requests.items()))


async def _counted(metrics: Metrics, calls: int) -> None:
    await until(lambda: _total(metrics) >= calls)


def _codes(metrics: Metrics) -> Counter[str]:
    codes: Counter[str] = Counter()
    for (_, code), each in metrics.requests.items():
        codes[code] += round(each.value)
    return +codes  # without those that are shown at 0


Ending = Callable[[RawConnection, int, str], Awaitable[None]]


def _answered(body: bytes, *headers: tuple[str, str], token: bool = True) -> Ending:
    """A complete request, answered with any status."""

    async def ending(raw: RawConnection, _port: int, path: str) -> None:
        stream = await raw.open("", *headers, *([TOKEN] if token else []), (":path", path))
        await raw.send(stream, body, end=True)
        await raw.reply(stream)

    return ending


def _unfinished(body: bytes, *headers: tuple[str, str]) -> Ending:
    """The rest of the request never comes: the server ends the call."""

    async def ending(raw: RawConnection, _port: int, path: str) -> None:
        stream = await raw.open("", *headers, TOKEN, (":path", path))
        await raw.send(stream, body)
        await raw.reply(stream)

    return ending


def _reset(body: bytes, *headers: tuple[str, str], pause_s: float | None = None) -> Ending:
    """The client resets the stream; without a pause, in the same write."""

    async def ending(raw: RawConnection, _port: int, path: str) -> None:
        if pause_s is not None:
            stream = await raw.open("", *headers, TOKEN, (":path", path))
            await raw.send(stream, body)
            await asyncio.sleep(pause_s)
        else:
            stream = raw.h2.get_next_available_stream_id()
            usual = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers"}
            usual |= {"content-type": "application/grpc", **dict((TOKEN, *headers))}
            raw.h2.send_headers(stream, list(usual.items()))
        raw.h2.reset_stream(stream)
        await raw.flush()

    return ending


def _dropped(body: bytes) -> Ending:
    """The client closes its connection."""

    async def ending(_raw: RawConnection, port: int, path: str) -> None:
        async with RawConnection(port) as own:
            stream = await own.open("", TOKEN, (":path", path))
            await own.send(stream, body)
            await asyncio.sleep(0.002)

    return ending


def _http1(head: str, body: bytes = b"", *, waits: bool = True) -> Ending:
    """A request of HTTP/1.1; without waiting, its client leaves."""

    async def ending(_raw: RawConnection, port: int, path: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.replace("PATH", path).replace("\n", "\r\n").encode() + b"\r\n" + body)
        await writer.drain()
        if waits:
            await reader.readuntil(b"x-request-id: ")  # in the headers, or in the trailers of gRPC-Web
        else:
            await asyncio.sleep(0.005)
        writer.close()
        await writer.wait_closed()

    return ending


POST = "POST PATH HTTP/1.1\nhost: a\nauthorization: Bearer secret\n"
JSON, WEB = "content-type: application/json\n", "content-type: application/grpc-web+proto\n"
WEB_HEADER = ("content-type", "application/grpc-web+proto")
JSON_HEADER = ("content-type", "application/json")

ENDINGS: dict[str, Ending] = {
    "answered": _answered(_framed(GOOD)),
    "no token": _answered(_framed(GOOD), token=False),
    "wrong token": _answered(_framed(GOOD), ("authorization", "Bearer x"), token=False),
    "cannot be parsed": _answered(_framed(b"\xff\xff")),
    "unknown model": _answered(_framed(pb.ClassifyRequest(model="none").SerializeToString())),
    "no message": _answered(b""),
    "half a message": _answered(_framed(GOOD)[:-1]),
    "an invalid flag": _answered(_framed(GOOD, flag=7)),
    "damaged gzip": _answered(_framed(b"xx", flag=1), ("grpc-encoding", "gzip")),
    "unknown encoding": _answered(_framed(GOOD), ("grpc-encoding", "snappy")),
    "too long": _answered(b"\0\xff\xff\xff\xff"),
    "an invalid timeout": _answered(_framed(GOOD), ("grpc-timeout", "5x")),
    "no time at all": _answered(_framed(GOOD), ("grpc-timeout", "1n")),
    "late before the first byte": _unfinished(b"", ("grpc-timeout", "5m")),
    "late in the message": _unfinished(_framed(GOOD)[:9], ("grpc-timeout", "5m")),
    "late in a decoder": _answered(_framed(LARGE), ("grpc-timeout", "2m")),
    "cancelled before it begins": _reset(b""),
    "cancelled before the first byte": _reset(b"", pause_s=0.001),
    "cancelled in the message": _reset(_framed(GOOD)[:9], pause_s=0.001),
    "cancelled in a decoder": _reset(_framed(LARGE), pause_s=0.001),
    "disconnected": _dropped(b""),
    "disconnected in the message": _dropped(_framed(GOOD)[:9]),
    "gRPC-Web": _answered(_framed(GOOD), WEB_HEADER),
    "gRPC-Web, half a message": _answered(_framed(GOOD)[:-1], WEB_HEADER),
    "gRPC-Web, reset": _reset(_framed(GOOD)[:9], WEB_HEADER, pause_s=0.001),
    "Connect over HTTP/2, invalid": _answered(b"{", JSON_HEADER),
    "Connect over HTTP/2, reset": _reset(b"{", JSON_HEADER),
    "another HTTP method": _http1("GET PATH HTTP/1.1\nhost: a\n"),
    "another media type": _http1(POST + "content-type: text/html\ncontent-length: 2\n", b"{}"),
    "gRPC over HTTP/1.1": _http1(POST + "content-type: application/grpc\ncontent-length: 0\n"),
    "JSON": _http1(POST + JSON + "content-length: 20\n", b'{"model": "colours"}'),
    "JSON, invalid": _http1(POST + JSON + "content-length: 1\n", b"{"),
    "JSON, an invalid timeout": _http1(POST + JSON + "connect-timeout-ms: x\ncontent-length: 2\n", b"{}"),
    "JSON, late": _http1(POST + JSON + "connect-timeout-ms: 5\ncontent-length: 9\n", b"{"),
    "JSON, no token": _http1("POST PATH HTTP/1.1\nhost: a\n" + JSON + "content-length: 2\n", b"{}"),
    "JSON, disconnected": _http1(POST + JSON + "content-length: 9\n", b"{", waits=False),
    "gRPC-Web over HTTP/1.1": _http1(POST + WEB + f"content-length: {len(GOOD) + 5}\n", _framed(GOOD)),
    "gRPC-Web over HTTP/1.1, half": _http1(POST + WEB + "content-length: 7\n", _framed(GOOD)[:7]),
}


# A probe that watches these names goes on until its client leaves.
WATCHED = ("answered", "no token", "wrong token", "unknown model", "gRPC-Web", "gRPC-Web over HTTP/1.1")


async def test_every_call_is_counted_once_whatever_ends_it(
    publish: Publish, serve: Serve, tmp_path: Path
) -> None:
    """All endings of unary calls, pipelines, streams and unknown methods, alone and at the same time."""
    publish()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[tokens]\n"secret" = ["*"]\n')
    paths = (UNARY, STREAM, WATCH, "/no.Service/None")
    async with serve(token_file=tokens, max_message_bytes=2**20) as server:
        port, metrics = server.grpc.port, server.metrics
        began = 0
        for path in paths:
            for name, ending in ENDINGS.items():
                if path == WATCH and name in WATCHED:
                    continue
                async with RawConnection(port) as raw:
                    await ending(raw, port, path)
                began += 1
                await _counted(metrics, began)
                assert _total(metrics) == began, (name, path)

        chosen = random.Random(17)  # noqa: S311 - no secret
        together = [
            (ending, path)
            for path in (UNARY, STREAM)
            for ending in chosen.sample(list(ENDINGS.values()), len(ENDINGS))
        ]
        async with asyncio.TaskGroup() as tasks:
            for ending, path in together:
                tasks.create_task(_alone(ending, port, path))
        began += len(together)
        await _counted(metrics, began)

        async with RawConnection(port) as raw:
            for path in (UNARY, STREAM, WATCH):  # the server stops while they run
                stream = await raw.open("", TOKEN, (":path", path))
                await raw.send(stream, _framed(b"") if path == WATCH else _framed(GOOD)[:9])
            began += 3
            await server.grpc.stop(until=_at_once, timeout_s=1)
        await _counted(metrics, began)
    await asyncio.sleep(0)

    assert _total(metrics) == began
    durations = sum(each.count for _, each in metrics.request_duration.items())
    assert durations == began
    assert "no.Service" not in str(dict(metrics.requests.items()))  # clients cannot create series


async def _alone(ending: Ending, port: int, path: str) -> None:
    async with RawConnection(port) as raw:
        await ending(raw, port, path)


async def _at_once() -> None:
    pass


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("no token", "UNAUTHENTICATED"),
        ("an invalid timeout", "INTERNAL"),
        ("no time at all", "DEADLINE_EXCEEDED"),
        ("late before the first byte", "DEADLINE_EXCEEDED"),
        ("late in the message", "DEADLINE_EXCEEDED"),
        ("JSON, late", "DEADLINE_EXCEEDED"),
        ("cancelled before it begins", "CANCELLED"),
        ("disconnected in the message", "CANCELLED"),
        ("JSON, disconnected", "CANCELLED"),
        ("another HTTP method", "UNIMPLEMENTED"),
    ],
)
async def test_calls_are_counted_with_the_code_that_they_got(
    name: str, code: str, publish: Publish, serve_gated: ServeGated
) -> None:
    """The code of the answer, or why there was none."""
    publish()
    async with serve_gated(tokens=Tokens({"secret": ["*"]})) as server:
        async with RawConnection(server.grpc.port) as raw:
            await ENDINGS[name](raw, server.grpc.port, UNARY)
        await until(lambda: _total(server.metrics) == 1)
        assert _codes(server.metrics) == {code: 1}


@pytest.mark.parametrize("transport", ["h2", "grpc"])
async def test_deadlines_are_counted_as_deadlines_in_every_family(
    transport: str, publish: Publish, serve: Serve, connect: Connect
) -> None:
    """Per method, per model and in Triton's statistics, whoever's timer is first."""
    publish()
    request = pb.ClassifyRequest.FromString(GOOD)
    statistics_of = "inference.GRPCInferenceService/ModelStatistics"
    async with serve(transport=transport, max_queue_delay_s=1) as server:  # longer than the deadlines
        stub = connect(server.grpc.port)
        await stub.call("inference.GRPCInferenceService/ServerLive", oip.ServerLiveRequest())
        calls = [stub.start(UNARY[1:], request, timeout=0.3) for _ in range(10)]
        codes = {(await call.code()).name for call in calls}
        await until(lambda: _total(server.metrics) == len(calls) + 1)
        counted = _codes(server.metrics)
        statistics = await stub.call(statistics_of, oip.ModelStatisticsRequest(name="colours"))

    assert codes == {"DEADLINE_EXCEEDED"}
    assert counted == {"OK": 1, "DEADLINE_EXCEEDED": 10}
    failures = {reason: n.value for (_, _, reason), n in server.metrics.request_failures.items() if n.value}
    assert failures == {"DEADLINE_EXCEEDED": 10}
    assert statistics.model_stats[0].inference_stats.fail.count == 10


async def test_a_request_that_a_full_server_refuses_counts_for_its_model(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Triton counts it as REJECTED."""
    publish()
    async with serve_gated(max_images=4, max_pending_images=4) as server:
        request = pb.ClassifyRequest(model="colours", images=[IMAGE] * 3)
        server.engine.close()
        running = connect(server.grpc.port).start(UNARY[1:], request)
        await asyncio.to_thread(server.engine.entered.wait, 10)
        refusal = await connect(server.grpc.port).refusal(UNARY[1:], request)
        server.engine.gate.set()
        await running

    assert refusal.code == "RESOURCE_EXHAUSTED"
    failed = [labels for labels, each in server.metrics.request_failures.items() if each.value]
    assert failed == [("colours", "1", "OVERLOADED")]


async def test_a_timeout_from_inside_is_no_passed_deadline() -> None:
    """A slow file system raises TimeoutError too: unary, and in a stream, with a deadline far away."""

    async def slow(_request: StringValue, _call: Call) -> StringValue:
        raise TimeoutError("[Errno 110] Connection timed out")

    async def slow_stream(requests: AsyncIterator[StringValue], call: Call) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield await slow(request, call)

    metrics = Metrics()
    middleware = Middleware(metrics)
    unary = middleware.wrap(Unary("/tests.Slow/Unary", StringValue, slow))
    stream = middleware.wrap(Stream("/tests.Slow/Stream", StringValue, slow_stream))
    for deadline_s in (float("inf"), 10.0**9):
        with pytest.raises(Failure) as caught:
            await unary.answer(sent(b""), Call({}, deadline_s=deadline_s))
        assert caught.value.status.code is Code.INTERNAL
        with pytest.raises(Failure) as caught:
            await anext(stream.answer(_one(), Call({}, deadline_s=deadline_s)))
        assert caught.value.status.code is Code.INTERNAL

    assert _codes(metrics) == {"INTERNAL": 4}


async def _one() -> AsyncIterator[bytes]:
    yield b""


async def test_health_watch_that_its_client_leaves_is_cancelled(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """However long it ran."""
    publish()
    async with serve() as server:
        call = connect(server.grpc.port).stream(WATCH[1:], health_pb2.HealthCheckRequest())
        await call.read()
        call.cancel()
        await until(lambda: _total(server.metrics) == 1)
        assert _codes(server.metrics) == {"CANCELLED": 1}
