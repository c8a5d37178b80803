"""ClassifyStream and ModelStreamInfer over a real channel: order, errors, flow control, stops."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import numpy as np
import pytest

from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import ServeGated
from tests.serving.stub import Connect, Stub

CLASSIFY = "lenserve.v1.Classifier/ClassifyStream"
INFER = "inference.GRPCInferenceService/ModelStreamInfer"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def _image(colour: str) -> pb.Image:
    return pb.Image(pixels=pb.Pixels(height=1, width=1, channels=3, data=bytes(COLOURS[colour])))


def _classify(*colours: str, id_: str = "", model: str = "colours") -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=model, images=[_image(each) for each in colours], top_k=1, id=id_)


def _infer(colour: str, id_: str = "", **fields: Any) -> oip.ModelInferRequest:
    pixels = np.full((1, 8, 8, 3), COLOURS[colour], np.uint8)  # (N, H, W, C)
    tensor = {"name": "image", "datatype": "UINT8", "shape": pixels.shape}
    fields = {"model_name": "colours", "inputs": [tensor], "raw_input_contents": [pixels.tobytes()], **fields}
    return oip.ModelInferRequest(id=id_, **fields)


async def _each(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


def _summary(answer: pb.ClassifyStreamResponse) -> tuple[str, str]:
    """The id, and the best label of the first image or the reason of the error."""
    if answer.WhichOneof("outcome") == "error":
        return answer.id, answer.error.reason
    return answer.id, answer.response.predictions[0].ranking.labels[0].label


@pytest.fixture
async def stub(publish: Publish, serve: Serve, connect: Connect) -> AsyncIterator[Stub]:
    """The stub of a server with one model."""
    publish()
    async with serve(max_images=4, max_batch_size=4) as server:
        yield connect(server.grpc.port)


async def test_answers_come_in_the_order_of_the_requests(stub: Stub) -> None:
    """Two hundred requests, sent as fast as flow control allows, each with its own answer and id."""
    colours = [("red", "green", "blue")[n % 3] for n in range(200)]
    requests = [_classify(colour, id_=str(n)) for n, colour in enumerate(colours)]

    received = [_summary(answer) async for answer in stub.talk(CLASSIFY, _each(requests))]

    assert received == [(str(n), colour) for n, colour in enumerate(colours)]


async def test_an_answer_of_a_stream_is_the_answer_of_a_call(stub: Stub) -> None:
    """Several images and an invalid one in a request: exactly the answer of Classify."""
    request = _classify("red", "blue", "green")
    request.images.append(pb.Image(encoded=b"x"))

    (streamed,) = [answer async for answer in stub.talk(CLASSIFY, _each([request]))]

    assert streamed.response == await stub.call("lenserve.v1.Classifier/Classify", request)


async def test_a_request_that_fails_does_not_end_the_stream(stub: Stub) -> None:
    """Unknown model, invalid image, no image, not a message: each has its status in its place."""
    bad_image = pb.ClassifyRequest(model="colours", images=[pb.Image(encoded=b"x")], id="image")
    requests = [
        _classify("red", id_="a"),
        _classify("red", id_="model", model="shapes"),
        bad_image,
        pb.ClassifyRequest(model="colours", id="none"),
        b"\xff\xff\xff",
        _classify("blue", id_="b"),
    ]

    answers = [answer async for answer in stub.talk(CLASSIFY, _each(requests))]

    assert [_summary(answer) for answer in answers] == [
        ("a", "red"),
        ("model", "UNKNOWN_MODEL"),
        ("image", "UNDECODABLE_IMAGE"),
        ("none", "INVALID_REQUEST"),
        ("", "INVALID_REQUEST"),
        ("b", "blue"),
    ]
    errors = [answer.error for answer in answers if answer.HasField("error")]
    assert [error.code for error in errors] == [5, 3, 3, 3]
    assert errors[0].message == "there is no model 'shapes'; known models: colours"
    assert errors[3].message == "cannot parse the request (3 bytes) as lenserve.v1.ClassifyRequest"


async def test_tritons_stream_answers_and_rejects_in_order(stub: Stub) -> None:
    """A response, or an error message with the id; each is marked as the last of its request."""
    requests = [_infer("red", "a"), _infer("red", "b", model_name="shapes"), _infer("blue", "c"), b"\xff"]

    answers = [answer async for answer in stub.talk(INFER, _each(requests))]

    assert [(each.infer_response.id, each.error_message) for each in answers] == [
        ("a", ""),
        ("b", "there is no model 'shapes'; known models: colours"),
        ("c", ""),
        ("", "cannot parse the request (1 bytes) as inference.ModelInferRequest"),
    ]
    assert [len(each.infer_response.outputs) for each in answers] == [1, 0, 1, 0]
    assert answers[0].infer_response.parameters["triton_final_response"].bool_param
    probabilities = np.frombuffer(answers[2].infer_response.raw_output_contents[0], "<f4")
    assert probabilities.argmax() == 2


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0)


async def test_requests_of_a_stream_share_batches(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """While the network runs for the first request, the next ones wait and become one batch."""
    publish()
    async with serve_gated() as server:
        server.engine.close()
        call = connect(server.grpc.port).talk(INFER, _each([_infer("red")] * 5))
        await _until(lambda: server.classifier.admission.pending == 5)
        server.engine.gate.set()
        answers = [answer async for answer in call]

        assert len(answers) == 5
        assert (len(server.engine.runs), sum(server.engine.runs)) == (2, 5)


async def test_a_sender_that_is_faster_than_the_network_is_slowed_down(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """The server reads no more than its limit, however much is sent."""
    publish()
    async with serve_gated(max_in_flight=3) as server:
        server.engine.close()
        call = connect(server.grpc.port).talk(CLASSIFY, _each([_classify("red")] * 20))
        await _until(lambda: server.classifier.admission.pending == 3)
        await connect(server.grpc.port).call(
            "inference.GRPCInferenceService/ServerLive", oip.ServerLiveRequest()
        )  # a round trip: the server had time to read more
        assert server.classifier.admission.pending == 3
        server.engine.gate.set()

        assert len([answer async for answer in call]) == 20


async def test_cancelling_a_stream_cancels_its_work(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Waiting requests are never run, and their admissions are released at once."""
    publish()
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        call = stub.talk(INFER, _each([_infer("red")] * 6))
        await _until(lambda: server.classifier.admission.pending == 6)
        await asyncio.to_thread(server.engine.entered.wait, 10)
        call.cancel()
        await _until(lambda: server.classifier.admission.pending == 0)
        server.engine.gate.set()
        await stub.call("lenserve.v1.Classifier/Classify", _classify("red", "red"))

        assert (len(server.engine.runs), server.engine.runs[-1]) == (2, 2)
        cancelled = {"method": f"/{INFER}", "code": "CANCELLED"}
        assert server.metrics.registry.get_sample_value("lenserve_requests_total", cancelled) == 1


async def test_a_stream_ends_at_its_deadline(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Waiting requests are not run."""
    publish()
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        call = stub.talk(INFER, _each([_infer("red")] * 6), timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [answer async for answer in call]
        await _until(lambda: server.classifier.admission.pending == 0)
        server.engine.gate.set()
        await stub.call("lenserve.v1.Classifier/Classify", _classify("red", "red"))
        late = {"method": f"/{INFER}", "code": "DEADLINE_EXCEEDED"}
        assert server.metrics.registry.get_sample_value("lenserve_requests_total", late) == 1

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.engine.runs[-1] == 2
    assert sum(server.engine.runs[:-1]) <= 4  # at most the batch that ran at the deadline


async def test_a_stop_answers_requests_in_flight(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """The network finishes its run before the server ends; then the stream is cut."""
    publish()
    async with serve_gated() as server:
        server.engine.close()
        call = connect(server.grpc.port).talk(CLASSIFY)
        for n in range(3):
            await call.write(_classify("red", id_=str(n)))
        await _until(lambda: server.classifier.admission.pending == 3)
        stopped = asyncio.create_task(server.grpc.stop(until=server.middleware.drain, timeout_s=10))
        await asyncio.sleep(0)
        server.engine.gate.set()
        answers = [await call.read() for _ in range(3)]
        await stopped
        began_s = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()

    assert [_summary(answer) for answer in answers] == [("0", "red"), ("1", "red"), ("2", "red")]
    assert time.monotonic() - began_s < 5


async def test_tokens_are_checked_inside_a_stream(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """A stream without a token is rejected; with one, every request is checked for its model."""
    publish()
    async with serve_gated(tokens=Tokens({"secret": ["colours"]})) as server:
        stub = connect(server.grpc.port)
        with pytest.raises(grpc.aio.AioRpcError) as stranger:
            await stub.talk(CLASSIFY).read()  # without a message: grpc.aio loses the status while it writes
        requests = _each([_classify("red"), _classify("red", model="x-rays")])
        known = stub.talk(CLASSIFY, requests, metadata=(("authorization", "Bearer secret"),))
        received = [_summary(answer) async for answer in known]

    assert stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert received == [("", "red"), ("", "PERMISSION_DENIED")]


async def test_a_stream_follows_the_token_file(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """The next message of a stream whose token is withdrawn is rejected."""
    publish()
    tokens = Tokens({"abc": ["colours"]})
    async with serve_gated(tokens=tokens) as server:
        stream = connect(server.grpc.port).talk(CLASSIFY, metadata=[("authorization", "Bearer abc")])
        summaries = []
        for each in (Tokens({"abc": ["colours"], "more": ["*"]}), Tokens({"more": ["*"]})):
            await stream.write(_classify("red"))
            summaries.append(_summary(await stream.read()))
            tokens.replace(each)
        await stream.write(_classify("red"))
        summaries.append(_summary(await stream.read()))
        stream.cancel()

    assert [reason for _, reason in summaries] == ["red", "red", "UNAUTHENTICATED"]
