"""lenserve.v1.Classifier over a real channel: rankings, and the errors of images."""

import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Repository
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.counting_turns import CountingTurns
from tests.serving.stub import Connect, Stub

CLASSIFY = "lenserve.v1.Classifier/Classify"
MAX_BYTES = 3000
MAX_PIXELS = 2000


def _png(colour: tuple[int, int, int] = (0, 200, 0), size: tuple[int, int] = (10, 12)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(height: int, width: int, channels: int, data: bytes) -> pb.Image:
    return pb.Image(pixels=pb.Pixels(height=height, width=width, channels=channels, data=data))


def _request(*images: pb.Image, **fields: Any) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(**{"model": "colours", "images": images, **fields})


@pytest.fixture
async def stub(publish: Publish, serve: Serve, connect: Connect) -> AsyncIterator[Stub]:
    """A stub of a server with low limits, default_top_k 2."""
    publish()
    limits = {"max_image_bytes": MAX_BYTES, "max_image_pixels": MAX_PIXELS, "default_top_k": 2}
    async with serve(**limits) as server:
        yield connect(server.grpc.port)


async def test_labels_are_ranked_with_index_and_probability(stub: Stub) -> None:
    """The most probable label comes first; the response has the model and its version."""
    answer = await stub.call(CLASSIFY, _request(pb.Image(encoded=_png((10, 255, 50))), top_k=3))

    assert (answer.model, answer.version, len(answer.predictions)) == ("colours", 1, 1)
    labels = answer.predictions[0].ranking.labels
    assert [(each.label, each.index) for each in labels] == [("green", 1), ("blue", 2), ("red", 0)]
    # The network is softmax(4 * mean / 255), see conftest.py.
    exponentials = np.exp(4 * np.array([255, 50, 10]) / 255)
    expected = exponentials / exponentials.sum()
    np.testing.assert_allclose([each.probability for each in labels], expected, atol=1e-6)


async def test_equal_probabilities_are_ranked_by_index(stub: Stub) -> None:
    """A tie goes to the lower index, every time."""
    grey = _pixels(2, 2, 1, bytes([7] * 4))

    answer = await stub.call(CLASSIFY, _request(grey, grey, top_k=3))

    for prediction in answer.predictions:
        assert [each.index for each in prediction.ranking.labels] == [0, 1, 2]


@pytest.mark.parametrize(("top_k", "count"), [(0, 2), (1, 1), (3, 3), (4, 3), (2**31 - 1, 3)])
async def test_top_k_is_the_number_of_labels(stub: Stub, top_k: int, count: int) -> None:
    """0 means the server's default, more than the number of classes means all."""
    answer = await stub.call(CLASSIFY, _request(pb.Image(encoded=_png()), top_k=top_k))

    assert len(answer.predictions[0].ranking.labels) == count


async def test_images_keep_their_order_and_errors_their_places(stub: Stub) -> None:
    """An invalid image does not affect the others: it has its own code, reason and message."""
    answer = await stub.call(
        CLASSIFY,
        _request(
            pb.Image(encoded=_png((255, 0, 0))),
            pb.Image(encoded=b"no image"),
            pb.Image(encoded=_png((0, 0, 255))),
            pb.Image(),
            _pixels(1, 1, 3, bytes([0, 9, 0])),
        ),
    )

    tops = [each.ranking.labels[0].label if each.HasField("ranking") else None for each in answer.predictions]
    assert tops == ["red", None, "blue", None, "green"]
    errors = [each.error for each in answer.predictions if each.HasField("error")]
    assert [(error.code, error.reason) for error in errors] == [(3, "UNDECODABLE_IMAGE"), (3, "EMPTY_IMAGE")]
    assert errors[0].message == "the image cannot be decoded: unknown image format (8 bytes)"


async def test_a_request_of_only_invalid_images_succeeds(stub: Stub) -> None:
    """Two invalid images give two errors, and the call succeeds."""
    answer = await stub.call(CLASSIFY, _request(pb.Image(), pb.Image(encoded=b"x")))

    assert [each.error.reason for each in answer.predictions] == ["EMPTY_IMAGE", "UNDECODABLE_IMAGE"]


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (600, 600)).save(buffer, "PNG")  # 360,000 pixels in a few hundred bytes
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "reason", "message"),
    [
        (pb.Image(), "EMPTY_IMAGE", "the image is empty: neither encoded bytes nor pixels"),
        (pb.Image(encoded=b""), "EMPTY_IMAGE", "the image is empty: 0 bytes"),
        (pb.Image(encoded=b"GIF89a"), "UNDECODABLE_IMAGE", "the image cannot be decoded: "),
        (pb.Image(encoded=_png()[:-30]), "UNDECODABLE_IMAGE", "the image cannot be decoded: "),
        (
            pb.Image(encoded=bytes(MAX_BYTES + 1)),
            "IMAGE_TOO_LARGE",
            "the image has 3001 bytes, the limit is 3000",
        ),
        (
            pb.Image(encoded=_bomb()),
            "IMAGE_TOO_LARGE",
            "the image has 600 x 600 = 360000 pixels, the limit is 2000",
        ),
        (
            _pixels(50, 41, 1, bytes(2050)),
            "IMAGE_TOO_LARGE",
            "the image has 41 x 50 = 2050 pixels, the limit is 2000",
        ),
        (
            _pixels(2, 2, 3, bytes(11)),
            "INVALID_PIXELS",
            "pixels have 11 bytes, expected 12 for the shape [2, 2, 3]",
        ),
        (
            _pixels(2, 2, 5, bytes(20)),
            "INVALID_PIXELS",
            "pixels have shape [2, 2, 5], expected [height, width] or [height, width, 1..4]",
        ),
        (
            _pixels(0, 2, 3, b""),
            "INVALID_PIXELS",
            "height, width and channels are [0, 2, 3], expected at least 1 each",
        ),
        (
            _pixels(-1, -2, 3, bytes(6)),
            "INVALID_PIXELS",
            "height, width and channels are [-1, -2, 3], expected at least 1 each",
        ),
        (
            _pixels(2**31 - 1, 2**31 - 1, 3, bytes(3)),
            "INVALID_PIXELS",
            "pixels have 3 bytes, expected 13835058042397261827 for the shape [2147483647, 2147483647, 3]",
        ),
    ],
    ids=[
        "no-content",
        "no-bytes",
        "no-image",
        "truncated",
        "too-many-bytes",
        "bomb",
        "too-many-pixels",
        "too-few-bytes",
        "five-channels",
        "zero-height",
        "negative",
        "huge-shape",
    ],
)
async def test_an_invalid_image_alone_fails_the_call(
    stub: Stub,
    image: pb.Image,
    reason: str,
    message: str,
) -> None:
    """INVALID_ARGUMENT with both numbers; among other images, the same message is at its place."""
    refusal = await stub.refusal(CLASSIFY, _request(image))
    among_others = await stub.call(CLASSIFY, _request(pb.Image(encoded=_png()), image))

    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", reason)
    assert refusal.message.startswith(message)
    error = among_others.predictions[1].error
    assert (error.code, error.reason, error.message) == (3, reason, refusal.message)


async def test_a_version_and_an_alias_can_be_requested(
    publish: Publish,
    serve: Serve,
    connect: Connect,
    repository: Repository,
) -> None:
    """By number and by alias; without either, `stable` answers."""
    publish()
    publish(rotate=1)
    repository.set_alias("colours", "stable", 1)
    repository.set_alias("colours", "canary", 2)
    red = pb.Image(encoded=_png((255, 0, 0)))
    async with serve() as server:
        stub = connect(server.grpc.port)
        answers = [
            await stub.call(CLASSIFY, _request(red, **revision))
            for revision in ({}, {"version": 2}, {"alias": "canary"}, {"alias": "stable"})
        ]

    actual = [(each.version, each.predictions[0].ranking.labels[0].label) for each in answers]
    assert actual == [(1, "red"), (2, "green"), (2, "green"), (1, "red")]


@pytest.mark.parametrize("count", [0, 129, 8000])
async def test_images_are_counted_before_they_are_decoded(stub: Stub, count: int) -> None:
    """In a message that is small enough to be parsed at once."""
    refusal = await stub.refusal(CLASSIFY, _request(*[pb.Image()] * count))

    assert refusal.message == f"the request has {count} images, expected 1 to 128"


async def test_images_are_counted_before_a_large_message_is_parsed(stub: Stub) -> None:
    """Two million empty ones in 4 MiB. In a stream, the next request is answered."""
    bomb = _request().SerializeToString() + b"\x22\x00" * (2 * 2**20)

    refusal = await stub.refusal(CLASSIFY, bomb)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert "more than 2048 fields" in refusal.message

    async def requests() -> AsyncIterator[pb.ClassifyRequest | bytes]:
        yield bomb
        yield _request(pb.Image(encoded=_png()))

    answers = [each async for each in stub.talk("lenserve.v1.Classifier/ClassifyStream", requests())]
    assert answers[0].error.reason == "INVALID_REQUEST"
    assert answers[1].response.predictions[0].ranking.labels[0].label == "green"


@pytest.mark.parametrize(("count", "slices"), [(85, 0), (1000, 24)])
async def test_many_labels_are_ranked_and_encoded_in_slices(
    publish: Publish, serve: Serve, connect: Connect, count: int, slices: int
) -> None:
    """No turn of the event loop has thousands of them. Few need no turn of their own."""
    publish()
    async with serve(max_images=1000) as server:
        server.classifier.turns = turns = CountingTurns()
        stub = connect(server.grpc.port)
        images = [_pixels(8, 8, 3, bytes([0, 255, 0] * 64)), _pixels(8, 8, 3, b"")] * count
        answer = await stub.call(CLASSIFY, _request(*images[:count], top_k=3))
    kinds = [prediction.WhichOneof("outcome") for prediction in answer.predictions]
    assert kinds == (["ranking", "error"] * count)[:count]
    assert {each.ranking.labels[0].label for each in answer.predictions[::2]} == {"green"}
    assert len(turns.costs_us) in (slices, slices - 6)
    assert max(turns.costs_us, default=0) <= 256


async def test_a_few_small_images_take_their_turn(publish: Publish, serve: Serve, connect: Connect) -> None:
    """They are decoded on the event loop, eight in up to a millisecond: not those of many calls at once."""
    publish()
    async with serve() as server:
        server.classifier.turns = turns = CountingTurns()
        await connect(server.grpc.port).call(CLASSIFY, _request(*[pb.Image(encoded=_png())] * 8))
        assert turns.costs_us == [8 * 30]


async def test_large_images_are_copied_in_slices(publish: Publish, serve: Serve, connect: Connect) -> None:
    """And elements of a large BYTES tensor in threads. The answers are those of small requests."""
    publish()
    photo = _png() + bytes(600_000)  # decoders ignore what follows
    async with serve() as server:
        server.classifier.turns = turns = CountingTurns()
        stub = connect(server.grpc.port)
        answer = await stub.call(CLASSIFY, _request(*[pb.Image(encoded=photo)] * 5))
        assert {each.ranking.labels[0].label for each in answer.predictions} == {"green"}
        assert turns.costs_us == [2 * len(photo) // 2000] * 2

        raw = (len(photo).to_bytes(4, "little") + photo) * 5
        infer = oip.ModelInferRequest(model_name="colours", raw_input_contents=[raw])
        infer.inputs.add(name="image", datatype="BYTES", shape=[5])
        response = await stub.call("inference.GRPCInferenceService/ModelInfer", infer)
        probabilities = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(5, 3)
        assert probabilities.argmax(axis=1).tolist() == [1] * 5
