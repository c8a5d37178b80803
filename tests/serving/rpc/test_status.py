"""Errors become status codes: the table, and each of its rows over a real channel."""

import asyncio
import inspect
import logging
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from serving import errors
from serving.metrics.recorder import Metrics
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.bearer_tokens import Tokens
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Unary
from serving.rpc.status import Code, Status, code_of, status_of
from serving.transports.rpc_over_http.server import H2Server
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import ServeGated
from tests.serving.stub import Connect

CLASSIFY = "lenserve.v1.Classifier/Classify"
SECRET = "/srv/path of the server"  # noqa: S105 - for the log alone

CODES = {
    "InvalidRequest": "INVALID_ARGUMENT",
    "ImageError": "INVALID_ARGUMENT",
    "EmptyImage": "INVALID_ARGUMENT",
    "ImageTooLarge": "INVALID_ARGUMENT",
    "UndecodableImage": "INVALID_ARGUMENT",
    "InvalidPixels": "INVALID_ARGUMENT",
    "InvalidTensor": "INVALID_ARGUMENT",
    "Unsupported": "UNIMPLEMENTED",
    "UnknownRegion": "NOT_FOUND",
    "RegionExists": "ALREADY_EXISTS",
    "Unauthenticated": "UNAUTHENTICATED",
    "PermissionDenied": "PERMISSION_DENIED",
    "UnknownModel": "NOT_FOUND",
    "ModelUnavailable": "UNAVAILABLE",
    "Overloaded": "RESOURCE_EXHAUSTED",
    "OutOfMemory": "RESOURCE_EXHAUSTED",
    "DeadlineExceeded": "DEADLINE_EXCEEDED",
}
EVERY_ERROR = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.LenserveError) and kind is not errors.LenserveError
]


def test_memory_that_runs_out_anywhere_is_no_internal_error() -> None:
    """Wherever Python raised it: the client may try again."""
    status = status_of(MemoryError("Unable to allocate 8 GiB in /srv"), "abc")
    assert (status.code, status.reason) == (Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert "/srv" not in status.message


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_every_error_has_the_code_of_the_table(kind: type[errors.LenserveError]) -> None:
    """An error has the code of its row; one that requests cannot cause is INTERNAL."""
    assert code_of(kind("why")).name == CODES.get(kind.__name__, "INTERNAL")


@pytest.mark.parametrize("code", Code)
def test_codes_are_numbered_as_in_grpc(code: Code) -> None:
    """Names and numbers are those of gRPC's own table."""
    assert code.value == grpc.StatusCode[code.name].value[0]


@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), errors.EngineError(SECRET), errors.BundleError(SECRET)]
)
def test_an_unexpected_error_reveals_only_the_request_id(error: Exception) -> None:
    """The message of INTERNAL is fixed: it has the request id and nothing of the error."""
    status = status_of(error, "id-1")

    assert status == Status(
        Code.INTERNAL, "INTERNAL", "the server failed; its log has the reason under request id-1"
    )


def test_details_are_a_google_rpc_status_with_an_error_info() -> None:
    """With code, message, reason, domain and request id."""
    details = status_of(errors.UnknownModel("there is no model 'x'"), "id-1").details("id-1")

    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (5, "there is no model 'x'")
    assert (info.reason, info.domain, info.metadata["request_id"]) == ("UNKNOWN_MODEL", "lenserve", "id-1")


def test_a_refusal_because_of_overload_says_when_to_try_again() -> None:
    """A RetryInfo with the estimate follows the ErrorInfo; other statuses have none."""
    refusal = status_of(errors.Overloaded("the queue takes 1.25 s", 1.25), "id-1")

    status = status_pb2.Status.FromString(refusal.details("id-1"))
    retry = error_details_pb2.RetryInfo()
    assert [each.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for each in status.details] == [True, False]
    assert status.details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)
    other = status_of(errors.Overloaded("too many regions"), "id-1")
    assert len(status_pb2.Status.FromString(other.details("id-1")).details) == 1


# The rows of the table over a real channel. Those of bad images are in services/test_classifier.py.


def _request(**fields: Any) -> pb.ClassifyRequest:
    pixels = pb.Pixels(height=2, width=2, channels=3, data=bytes(12))
    return pb.ClassifyRequest(**{"model": "colours", "images": [pb.Image(pixels=pixels)], **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "shapes"}, "there is no model 'shapes'; known models: colours"),
        ({"model": ""}, "there is no model ''; known models: colours"),
        (
            {"version": 7},
            (
                "version 7 of model 'colours' is not served; served versions: 1; if it is published, "
                "promote it (`lenserve models promote colours@7`), or give it an alias"
            ),
        ),
        (
            {"version": -1},
            (
                "version -1 of model 'colours' is not served; served versions: 1; if it is published, "
                "promote it (`lenserve models promote colours@-1`), or give it an alias"
            ),
        ),
        ({"alias": "canary"}, "model 'colours' has no alias 'canary'; known aliases: none"),
    ],
)
async def test_an_unknown_model_version_or_alias_is_not_found(
    publish: Publish,
    serve: Serve,
    connect: Connect,
    fields: dict[str, object],
    message: str,
) -> None:
    """NOT_FOUND names what was requested and what is available."""
    publish()
    async with serve() as server:
        refusal = await connect(server.grpc.port).refusal(CLASSIFY, _request(**fields))

    assert (refusal.code, refusal.message, refusal.reason) == ("NOT_FOUND", message, "UNKNOWN_MODEL")


async def test_a_model_before_the_first_scan_is_unavailable(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """While the server starts, a model that may be found is UNAVAILABLE, not unknown."""
    publish()
    async with serve_gated(scanned=False) as server:
        refusal = await connect(server.grpc.port).refusal(CLASSIFY, _request())

    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "MODEL_UNAVAILABLE")
    assert refusal.message == "model 'colours' is not loaded yet: the server is starting"


async def test_a_version_that_is_loading_is_unavailable(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """By its number it is UNAVAILABLE; without a number the old version answers."""
    publish()
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.loads.clear()
        publish()
        change = server.models.change
        while not any(status.state == "loading" for status in server.models.statuses()):
            await change.wait()
            change = server.models.change
        refusal = await stub.refusal(CLASSIFY, _request(version=2))
        answer = await stub.call(CLASSIFY, _request())

    assert (refusal.code, refusal.message) == ("UNAVAILABLE", "version 2 of model 'colours' is loading")
    assert answer.version == 1


async def test_a_refused_version_is_unavailable_with_the_reason(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """A version that failed its golden examples is UNAVAILABLE, with difference and tolerance."""
    publish(lie=True)
    async with serve() as server:
        refusal = await connect(server.grpc.port).refusal(CLASSIFY, _request())

    assert refusal.code == "UNAVAILABLE"
    assert "version 1 was refused: golden probabilities differ by 0.9" in refusal.message
    assert refusal.message.endswith("the tolerance is 0.002")


async def test_new_calls_while_draining_are_unavailable(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """A server that stops lets running calls end and rejects new ones as UNAVAILABLE."""
    publish()
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        running = stub.start(CLASSIFY, _request())
        await asyncio.to_thread(server.engine.entered.wait, 10)
        stopping = asyncio.create_task(server.grpc.stop(until=server.middleware.drain, timeout_s=20))
        await asyncio.sleep(0)  # let it start
        refusal = await stub.refusal(CLASSIFY, _request())
        health = await stub.call("grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
        server.engine.gate.set()
        answer = await running
        await stopping

    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "MODEL_UNAVAILABLE")
    assert refusal.message == "the server is stopping and accepts no new calls: try again"
    assert health.status == health_pb2.HealthCheckResponse.SERVING  # Models.drain() changes it, this does not
    assert len(answer.predictions) == 1


async def test_a_full_server_rejects_at_once(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """RESOURCE_EXHAUSTED comes while the network runs, with images admitted, images requested, and limit."""
    publish()
    async with serve_gated(max_pending_images=3) as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        image = _request().images[0]
        running = stub.start(CLASSIFY, _request(images=[image, image]))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        started_s = time.monotonic()
        refusal = await stub.refusal(CLASSIFY, _request(images=[image, image]))
        took_s = time.monotonic() - started_s
        one_more = stub.start(CLASSIFY, _request())
        server.engine.gate.set()
        answers = [len((await call).predictions) for call in (running, one_more)]

    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refusal.message == "2 images are pending, 2 more would exceed the limit of 3: retry later"
    assert took_s < 1
    assert answers == [2, 1]
    assert server.classifier.admission.pending == 0


async def test_a_passed_deadline_is_reported_and_the_work_is_not_done(
    publish: Publish, serve_gated: ServeGated, connect: Connect
) -> None:
    """A request whose deadline passes in the queue is DEADLINE_EXCEEDED and never reaches the network."""
    publish()
    async with serve_gated() as server:
        stub = connect(server.grpc.port)
        server.engine.close()
        image = _request().images[0]
        running = stub.start(CLASSIFY, _request(images=[image] * 2))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        refusal = await stub.refusal(CLASSIFY, _request(images=[image] * 3), timeout=0.1)
        server.engine.gate.set()
        await running
        await stub.call(CLASSIFY, _request())  # the queue is empty: waiting requests would have run first

    assert refusal.code == "DEADLINE_EXCEEDED"
    assert server.engine.runs == [2, 1]
    assert server.classifier.admission.pending == 0


async def test_the_server_names_the_passed_deadline(publish: Publish, serve_gated: ServeGated) -> None:
    """If the client does not end the call first, the server's message says what was late."""
    publish()
    async with serve_gated() as server:
        server.engine.close()
        running = asyncio.create_task(
            server.classifier.classify([np.zeros((2, 2), np.uint8)], model="colours")
        )
        await asyncio.to_thread(server.engine.entered.wait, 10)
        late = server.classifier.classify(
            [np.zeros((2, 2), np.uint8)], model="colours", deadline_s=time.monotonic() - 1
        )
        with pytest.raises(errors.DeadlineExceeded, match="before the images were decoded") as caught:
            await late
        server.engine.gate.set()
        await running

    assert status_of(caught.value, "id-1").code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("authorization", "model", "code", "message"),
    [
        (
            None,
            "colours",
            "UNAUTHENTICATED",
            "the bearer token is missing: send the metadata `authorization: Bearer TOKEN`",
        ),
        (
            "Basic abc",
            "colours",
            "UNAUTHENTICATED",
            "the bearer token is missing: send the metadata `authorization: Bearer TOKEN`",
        ),
        ("Bearer wrong", "colours", "UNAUTHENTICATED", "the bearer token is unknown"),
        (
            "Bearer for-shapes",
            "colours",
            "PERMISSION_DENIED",
            "the bearer token does not allow model 'colours'",
        ),
    ],
)
async def test_calls_without_the_right_token_are_rejected(
    *,
    publish: Publish,
    serve_gated: ServeGated,
    connect: Connect,
    authorization: str | None,
    model: str,
    code: str,
    message: str,
) -> None:
    """A missing or wrong token is UNAUTHENTICATED; one for another model is PERMISSION_DENIED."""
    publish()
    metadata = (("authorization", authorization),) if authorization else ()
    async with serve_gated(tokens=Tokens({"for-shapes": ["shapes"]})) as server:
        refusal = await connect(server.grpc.port).refusal(CLASSIFY, _request(model=model), metadata=metadata)

    assert (refusal.code, refusal.message) == (code, message)


async def test_an_unexpected_failure_is_only_logged(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets INTERNAL, a fixed message and the request id, under which the log has the traceback."""

    async def fail(_request: empty_pb2.Empty, _call: Call) -> empty_pb2.Empty:
        raise ZeroDivisionError(SECRET)

    row = Unary("/inference.GRPCInferenceService/ServerLive", empty_pb2.Empty, fail)
    middleware = Middleware(Metrics())
    async with AsyncExitStack() as stack:
        server = H2Server([middleware.wrap(row)], host="127.0.0.1", port=0, max_message_bytes=2**20)
        await stack.enter_async_context(server)
        with caplog.at_level(logging.ERROR):
            refusal = await connect(server.port).refusal(
                row.method[1:], b"", metadata=(("x-request-id", "id-of-mine"),)
            )

    assert refusal.code == "INTERNAL"
    assert refusal.message == "the server failed; its log has the reason under request id-of-mine"
    assert (refusal.reason, refusal.request_id) == ("INTERNAL", "id-of-mine")
    assert SECRET not in str(refusal)
    (record,) = [record for record in caplog.records if record.getMessage() == "call_failed"]
    assert record.__dict__["request_id"] == "id-of-mine"
    assert record.exc_info is not None
    assert SECRET in str(record.exc_info[1])


async def test_a_network_that_fails_is_internal_without_details(
    publish: Publish,
    serve_gated: ServeGated,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Errors of the engine on valid input are only logged."""
    publish()
    async with serve_gated() as server:
        server.engine.error = errors.EngineError(SECRET)
        with caplog.at_level(logging.ERROR):
            refusal = await connect(server.grpc.port).refusal(CLASSIFY, _request())

    assert refusal.code == "INTERNAL"
    assert refusal.message == f"the server failed; its log has the reason under request {refusal.request_id}"
    assert SECRET not in str(refusal)
    assert any(SECRET in (record.exc_text or "") for record in caplog.records) or SECRET in caplog.text


async def test_too_many_images_are_rejected_with_both_numbers(
    publish: Publish, serve: Serve, connect: Connect
) -> None:
    """More images than max_images, or none, are INVALID_ARGUMENT with the count and the limit."""
    publish()
    image = _request().images[0]
    async with serve(max_images=3) as server:
        stub = connect(server.grpc.port)
        refusals = [await stub.refusal(CLASSIFY, _request(images=[image] * count)) for count in (0, 4)]
        top_k = await stub.refusal(CLASSIFY, _request(top_k=-2))

    assert [refusal.code for refusal in refusals] == ["INVALID_ARGUMENT"] * 2
    assert [refusal.message for refusal in refusals] == [
        "the request has 0 images, expected 1 to 3",
        "the request has 4 images, expected 1 to 3",
    ]
    assert (top_k.code, top_k.message) == ("INVALID_ARGUMENT", "top_k is -2, expected at least 0")
