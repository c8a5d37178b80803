"""The access log: one line for a call, on every wire; a sample of calls; and nothing that delays them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.metrics.recorder import Metrics
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.access_log import AccessLog
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Unary
from tests.colours import Publish
from tests.servers import Serve, StartServer
from tests.serving.log_events import LogEvents
from tests.serving.rpc.reading import sent
from tests.serving.stub import Connect
from tests.serving.until import until

CLASSIFY = "lenserve.v1.Classifier/Classify"
STREAM = "lenserve.v1.Classifier/ClassifyStream"
IMAGE = pb.Image(pixels=pb.Pixels(height=8, width=8, channels=3, data=bytes(192)))
GOOD = pb.ClassifyRequest(model="colours", images=[IMAGE])


def _lines(log: LogEvents) -> list[dict[str, Any]]:
    fields = ("method", "code", "bytes_in", "bytes_out", "model", "request_id", "peer", "duration_s")
    return [
        {name: getattr(record, name) for name in fields}
        for record in log.records
        if record.getMessage() == "call"
    ]


@pytest.mark.parametrize("transport", ["h2", "grpc"])
async def test_a_call_is_one_line(
    transport: str, publish: Publish, serve: Serve, connect: Connect, log_events: LogEvents
) -> None:
    """Unary calls and streams, good and refused, with the peer and the request id that the client got."""
    publish()
    async with serve(transport=transport, access_log_sample=1) as server:
        stub = connect(server.grpc.port)
        metadata = (("x-request-id", "mine"),)
        answer = await stub.call(CLASSIFY, GOOD, metadata=metadata)
        refusal = await stub.refusal(CLASSIFY, pb.ClassifyRequest(model="none", images=[IMAGE]))
        answers = [each async for each in stub.talk(STREAM, _twice())]
        await stub.refusal("grpc.health.v1.Health/Check", b"\xff")
        late = stub.start(CLASSIFY, GOOD, timeout=1e-6)
        await asyncio.wait([asyncio.ensure_future(late.code())])
        await until(lambda: len(_lines(log_events)) >= 4)

    lines = _lines(log_events)[:4]
    size = GOOD.ByteSize()
    assert [(line["method"], line["code"], line["bytes_in"]) for line in lines] == [
        (f"/{CLASSIFY}", "OK", size),
        (f"/{CLASSIFY}", "NOT_FOUND", pb.ClassifyRequest(model="none", images=[IMAGE]).ByteSize()),
        (f"/{STREAM}", "OK", 2 * size),
        ("/grpc.health.v1.Health/Check", "INVALID_ARGUMENT", 1),
    ]
    sent_bytes = [answer.ByteSize(), 0, sum(each.ByteSize() for each in answers), 0]
    assert [line["bytes_out"] for line in lines] == sent_bytes
    assert [line["model"] for line in lines] == ["colours", "none", "colours", ""]
    assert [line["request_id"] for line in lines[:2]] == ["mine", refusal.request_id]
    assert all("127.0.0.1:" in line["peer"] and line["duration_s"] > 0 for line in lines)


async def _twice() -> AsyncIterator[pb.ClassifyRequest]:
    yield GOOD
    yield GOOD


async def test_requests_that_no_method_sees_are_lines_too(
    publish: Publish, serve: Serve, log_events: LogEvents
) -> None:
    """An unknown method, over HTTP/1.1."""
    publish()
    async with serve(access_log_sample=1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc.port)
        writer.write(
            b"POST /a/b HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        peer = writer.get_extra_info("sockname")
        writer.close()

    (line,) = _lines(log_events)
    assert (line["method"], line["code"]) == ("unknown", "UNIMPLEMENTED")
    assert line["peer"] == f"{peer[0]}:{peer[1]}"
    assert f"x-request-id: {line['request_id']}".encode() in head


async def test_a_sample_is_logged(log_events: LogEvents) -> None:
    """Each call is drawn; with 0 the handlers are not even wrapped."""

    async def echo(request: oip.ServerLiveRequest, _call: Call) -> oip.ServerLiveRequest:
        return request

    row = Unary("/tests.Echo/Say", oip.ServerLiveRequest, echo)
    draws = iter([0.1, 0.3, 0.25, 0.2])
    handler = Middleware(Metrics(), access_log=AccessLog(0.25, draw=lambda: next(draws))).wrap(row)
    for _ in range(4):
        await handler.answer(sent(b""), Call({}))
    assert len(_lines(log_events)) == 2


async def test_a_line_has_the_beginning_of_a_long_name(log_events: LogEvents) -> None:
    """A client may send 64 KiB as the name of a model."""

    async def echo(request: oip.ModelReadyRequest, _call: Call) -> oip.ModelReadyRequest:
        return request

    row = Unary("/tests.Echo/Say", oip.ModelReadyRequest, echo, model_field="name")
    handler = Middleware(Metrics(), access_log=AccessLog(1)).wrap(row)
    await handler.answer(sent(oip.ModelReadyRequest(name="m" * 2**16).SerializeToString()), Call({}))
    assert [line["model"] for line in _lines(log_events)] == ["m" * 200]


async def test_a_server_writes_the_lines_as_json(publish: Publish, start_server: StartServer) -> None:
    """To stderr, as its other events, and until it stops."""
    publish()
    server = start_server("--access-log-sample", "1")
    body = json.dumps({"model": "colours"}).encode()
    reader, writer = await asyncio.open_connection(*server.grpc.split(":"))
    kind = "content-type: application/json"
    head = f"POST /{CLASSIFY} HTTP/1.1\r\nhost: a\r\n{kind}\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await asyncio.to_thread(server.wait_for, "call", code="INVALID_ARGUMENT")
    assert await asyncio.to_thread(server.stop) == 0
