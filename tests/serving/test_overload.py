"""Overload: a server that is asked for more than it can do answers about as much as it can."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens
from tests.colours import Publish
from tests.serving.gated_server import ServeGated
from tests.serving.stub import Connect
from tests.serving.transports.raw_connection import RawConnection
from tests.serving.until import until

CLASSIFY = "lenserve.v1.Classifier/Classify"
INFER = "inference.GRPCInferenceService/ModelInfer"
STREAM = "lenserve.v1.Classifier/ClassifyStream"
IMAGE_S = 0.02  # without CPU: what is measured does not depend on the machine
DEADLINE_S = 0.6
SECONDS = 1.5
TIMES_CAPACITY = 3


def _request(model: str = "colours") -> pb.ClassifyRequest:
    pixels = pb.Pixels(height=8, width=8, channels=3, data=bytes(192))
    return pb.ClassifyRequest(model=model, images=[pb.Image(pixels=pixels)])


async def _all(answers: AsyncIterator[pb.ClassifyStreamResponse]) -> list[pb.ClassifyStreamResponse]:
    return [answer async for answer in answers]


async def test_three_times_the_load_is_answered_as_far_as_possible_and_the_rest_is_refused_at_once(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Nothing that was accepted is late, and each refusal says when to try again."""
    publish()
    codes: Counter[str] = Counter()
    refusals: list[tuple[float, bytes]] = []
    async with serve_gated(image_s=IMAGE_S) as server:
        call = connect(server.grpc.port)

        async def classify() -> None:
            started_s = time.monotonic()
            try:
                await call.start(CLASSIFY, _request(), timeout=DEADLINE_S)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
                    refusals.append((time.monotonic() - started_s, details))

        async with asyncio.TaskGroup() as calls:
            end_s = time.monotonic() + SECONDS
            while time.monotonic() < end_s:
                calls.create_task(classify())
                await asyncio.sleep(IMAGE_S / TIMES_CAPACITY)

    capacity = (SECONDS + DEADLINE_S) / IMAGE_S
    assert codes["OK"] >= 0.6 * capacity
    assert codes["DEADLINE_EXCEEDED"] <= 0.2 * codes["OK"]  # where other processes stop this one for a moment
    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert sorted(took_s for took_s, _ in refusals)[len(refusals) // 2] < DEADLINE_S / 4
    retry = error_details_pb2.RetryInfo()
    assert status_pb2.Status.FromString(refusals[-1][1]).details[1].Unpack(retry)
    assert 0.1 <= retry.retry_delay.ToTimedelta().total_seconds() <= 1


def _beginning(request: Message) -> bytes:
    """The prefix of a message, and what fits into the first frame of it."""
    message = request.SerializeToString()
    return (b"\0" + len(message).to_bytes(4, "big") + message)[:1000]


@pytest.mark.parametrize(
    ("model", "alias", "code"),
    [
        ("colours", "", "RESOURCE_EXHAUSTED"),
        ("colours", "none", "NOT_FOUND"),
        ("colors", "", "NOT_FOUND"),
    ],
)
async def test_a_call_that_cannot_be_answered_is_refused_before_its_images_arrive(
    publish: Publish, serve_gated: ServeGated, model: str, alias: str, code: str
) -> None:
    """Its first bytes name the model. What was not sent yet need not be sent, received or parsed."""
    publish()
    request = pb.ClassifyRequest(model=model, alias=alias or None, images=[pb.Image(encoded=bytes(10**6))])
    async with serve_gated() as server:
        backlog = server.models.lease("colours").backlog
        backlog.run_s = 1.0
        server.classifier.admission.enter(8, backlog)
        async with RawConnection(server.grpc.port) as connection:
            stream = await connection.open("", (":path", f"/{CLASSIFY}"))
            await connection.send(stream, _beginning(request))
            reply = await connection.reply(stream)
            assert reply.code == code
            await connection.read_until(lambda: reply.reset is not None)
            assert reply.reset == 0  # NO_ERROR: RFC 9113, section 8.1
        server.classifier.admission.leave(8, backlog)
        assert server.metrics.registry.get_sample_value(
            "lenserve_requests_total", {"method": f"/{CLASSIFY}", "code": code}
        )


async def test_a_call_with_room_waits_for_its_images(publish: Publish, serve_gated: ServeGated) -> None:
    """Only what is known to be impossible ends early."""
    publish()
    request = _request()
    request.images[0].pixels.data = bytes(192)
    for _ in range(20):
        request.images.append(request.images[0])
    message = request.SerializeToString()
    async with serve_gated() as server, RawConnection(server.grpc.port) as connection:
        stream = await connection.open("", (":path", f"/{CLASSIFY}"))
        await connection.send(stream, _beginning(request))
        await connection.send(stream, message[995:], end=True)
        assert (await connection.reply(stream)).code == "OK"


async def test_it_does_not_tell_how_busy_a_model_is_that_the_token_does_not_allow(
    publish: Publish, serve_gated: ServeGated
) -> None:
    """Permission comes first."""
    publish()
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 8, 8, 3])
    request = oip.ModelInferRequest(model_name="colours", inputs=[tensor], raw_input_contents=[bytes(10**6)])
    tokens = Tokens({"mine": ["colours"], "other": ["digits"]})
    codes = []
    async with serve_gated(tokens=tokens) as server:
        backlog = server.models.lease("colours").backlog
        backlog.run_s = 1.0
        server.classifier.admission.enter(8, backlog)
        async with RawConnection(server.grpc.port) as connection:
            for token in ("mine", "other", "none"):
                headers = ((":path", f"/{INFER}"), ("authorization", f"Bearer {token}"))
                stream = await connection.open("", *headers)
                await connection.send(stream, _beginning(request))
                codes.append((await connection.reply(stream)).code)
        server.classifier.admission.leave(8, backlog)
    assert codes == ["RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED"]


async def test_clients_that_send_large_messages_get_the_reason(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Although the answer comes before they have sent everything."""
    publish()
    request = pb.ClassifyRequest(model="colours", images=[pb.Image(encoded=bytes(900_000))])
    async with serve_gated() as server:
        backlog, stub = server.models.lease("colours").backlog, connect(server.grpc.port)
        backlog.run_s = 1.0
        server.classifier.admission.enter(8, backlog)
        for _ in range(10):
            refusals = await asyncio.gather(*(stub.refusal(CLASSIFY, request) for _ in range(10)))
            assert {refusal.reason for refusal in refusals} == {"OVERLOADED"}


async def test_requests_of_a_stream_wait_for_their_turn_instead_of_being_refused(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """A stream may send far more than fits into the queue: its flow control slows its client down."""
    publish()

    async def requests() -> AsyncIterator[pb.ClassifyRequest]:
        for _ in range(40):
            yield _request()

    async with serve_gated(image_s=0.01, max_queue_s=0.05) as server:
        answers = [answer async for answer in connect(server.grpc.port).talk(STREAM, requests())]

    assert [answer.WhichOneof("outcome") for answer in answers] == ["response"] * 40


async def test_a_call_that_takes_the_place_of_a_stream_does_not_get_it_refused(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Between its turn and its next step: it waits for the next turn."""
    publish()

    async def requests() -> AsyncIterator[pb.ClassifyRequest]:
        yield _request()

    async with serve_gated(max_queue_s=0.05) as server:
        control, backlog = server.classifier.admission, server.models.lease("colours").backlog
        backlog.run_s = 0.01
        control.enter(6, backlog)  # more than fits
        answers = asyncio.create_task(_all(connect(server.grpc.port).talk(STREAM, requests())))
        await until(lambda: len(backlog.waiting) == 1)
        for _ in range(4):  # the fourth place is the stream's
            control.leave(1, backlog)
            control.enter(1, backlog)
        assert not backlog.waiting
        await until(lambda: len(backlog.waiting) == 1)
        control.leave(6, backlog)
        assert [answer.WhichOneof("outcome") for answer in await answers] == ["response"]


async def test_a_model_that_is_overloaded_does_not_get_another_refused(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """Its places run out, but an eighth is kept for others."""
    publish()
    publish("other")
    async with serve_gated(max_pending_images=32) as server:
        stub = connect(server.grpc.port)
        for engine in server.engines:
            engine.close()
        async with asyncio.timeout(10):
            others = [stub.start(CLASSIFY, _request("other"))]
            await until(lambda: server.classifier.admission.pending == 1)
            running = [stub.start(CLASSIFY, _request()) for _ in range(27)]
            await until(lambda: server.classifier.admission.pending == 28)
            refusal = await stub.refusal(CLASSIFY, _request())
            others += [stub.start(CLASSIFY, _request("other")) for _ in range(3)]
            await until(lambda: server.classifier.admission.pending == 31)
            for engine in server.engines:
                engine.gate.set()
            assert [(await call).model for call in others] == ["other"] * 4
            await asyncio.gather(*running)

    assert refusal.reason == "OVERLOADED"
    assert "of which 4 are for other models" in refusal.message
