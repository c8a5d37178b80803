"""The use case, without any transport."""

import asyncio
import io
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.batching.backlog import Backlog
from serving.bundle import ImageLimits, Repository
from serving.bundle.images import Pixels
from serving.classify.classifier import Classifier
from serving.classify.results import Classification, rank
from serving.engine.base import Output
from serving.engine.onnx import OnnxEngine
from serving.errors import (
    DeadlineExceeded,
    EmptyImage,
    EngineError,
    ImageError,
    ImageTooLarge,
    InvalidOutput,
    InvalidPixels,
    InvalidRequest,
    InvalidTensor,
    ModelUnavailable,
    OutOfMemory,
    Overloaded,
    UndecodableImage,
    UnknownModel,
)
from serving.metrics.recorder import Metrics
from tests.colours import Publish
from tests.serving.engines import CPU
from tests.serving.log_events import LogEvents
from tests.serving.open_models import OpenModels

NAME = "colours"
COLOURS = ("red", "green", "blue")
SERVED = {"model": NAME, "version": "1"}

Open = Callable[..., AbstractAsyncContextManager[tuple[Classifier, Metrics]]]

SCRIPT = """
import asyncio, sys
from functools import partial
from pathlib import Path
from serving.batching.policy import BatchPolicy
from serving.bundle import Repository
from serving.classify.classifier import Classifier
from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from serving.metrics.recorder import Metrics
from serving.models.registry import Models
from serving.models.loader import VersionLoader

async def main():
    load = partial(OnnxEngine.load, device=Device("cpu", 0, ""), threads=1, max_batch_size=8)
    metrics = Metrics()
    repository = Repository(Path(sys.argv[1]))
    loader = VersionLoader(repository, load, policy=BatchPolicy(8), warm_sizes=(1,), metrics=metrics)
    models = Models(loader)
    async with models, Classifier(models, metrics=metrics) as classifier:
        await models.scanned()
        answer = await classifier.classify([sys.stdin.buffer.read()], model="colours", top_k=1)
    print(answer.results[0][0].label, sorted({"grpc", "google.protobuf"} & set(sys.modules)))

asyncio.run(main())
"""


@pytest.fixture
def open_classifier(publish: Publish, open_models: OpenModels) -> Open:
    """A classifier over version 1 of the colours, with batches of at most 4."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Classifier, Metrics]]:
        of_models = {key: options.pop(key) for key in ("load_engine", "max_batch_size") if key in options}
        publish()
        metrics = Metrics()
        async with (
            open_models(metrics=metrics, **of_models) as models,
            Classifier(models, metrics=metrics, **options) as classifier,
        ):
            yield classifier, metrics

    return opened


class TestRank:
    """The most probable labels first, ties by lower index."""

    @given(
        # Few different values make many ties.
        probabilities=st.lists(
            st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32), min_size=1, max_size=40
        ),
        top_k=st.integers(1, 50),
    )
    def test_it_is_the_order_of_probability_and_then_of_index(
        self, probabilities: list[float], top_k: int
    ) -> None:
        """The same as sorting by (-p, index) and taking the first top_k, or all if there are fewer."""
        labels = [f"label {index}" for index in range(len(probabilities))]
        expected = sorted(enumerate(probabilities), key=lambda pair: (-pair[1], pair[0]))[:top_k]
        found = rank(np.array(probabilities, np.float32), labels, top_k)
        assert [(each.index, each.probability) for each in found] == expected
        assert all(each.label == labels[each.index] for each in found)


class TestClassify:
    """Images in, ranked labels out."""

    def test_it_needs_no_grpc(self, publish: Publish, repository: Repository) -> None:
        """A plain script classifies a file; neither gRPC nor protobuf is loaded for it."""
        publish()
        command = [sys.executable, "-c", SCRIPT, str(repository.root)]
        done = subprocess.run(command, input=_png("green"), capture_output=True, check=True)
        assert done.stdout.decode() == "green []\n"

    async def test_answers_keep_the_order_of_the_images(self, open_classifier: Open) -> None:
        """For encoded and raw images, in more than one batch."""
        names = [COLOURS[n % 3] for n in range(23)]
        images = [_png(name) if n % 2 else _pixels(name) for n, name in enumerate(names)]
        async with open_classifier() as (classifier, metrics):
            answer = await classifier.classify(images, model=NAME, top_k=1)
            assert (answer.model, answer.version) == (NAME, 1)
            assert _labels(answer) == names
            batches = metrics.registry.get_sample_value("lenserve_batch_size_count", SERVED)
            assert batches is not None
            assert batches >= 6  # 23 images, at most 4 at once

    async def test_bad_images_get_errors_and_the_others_labels(self, open_classifier: Open) -> None:
        """All kinds of bad images among good ones, in one request."""
        bad: list[tuple[Any, type[ImageError], str]] = [
            (b"", EmptyImage, "the image is empty: 0 bytes"),
            (b"junk", UndecodableImage, "the image cannot be decoded: unknown image format (4 bytes)"),
            (_png("red")[:-30], UndecodableImage, "the image cannot be decoded"),
            (np.zeros((40, 40, 3), np.uint8), ImageTooLarge, "40 x 40 = 1600 pixels, the limit is 400"),
            (_png("red", side=40), ImageTooLarge, "40 x 40 = 1600 pixels, the limit is 400"),
            (np.zeros((8, 8, 5), np.uint8), InvalidPixels, "pixels have shape [8, 8, 5]"),
            (InvalidPixels("known already on the wire"), InvalidPixels, "known already on the wire"),
        ]
        images = [each for image, _, _ in bad for each in (image, _png("blue"))]
        async with open_classifier(limits=ImageLimits(max_pixels=400)) as (classifier, metrics):
            answer = await classifier.classify(images, model=NAME, top_k=1)
            assert _labels(answer)[1::2] == ["blue"] * len(bad)
            for result, (_, kind, message) in zip(answer.results[::2], bad, strict=True):
                assert type(result) is kind
                assert message in str(result)
            outcomes = {
                "OK": 7,
                "EMPTY_IMAGE": 1,
                "UNDECODABLE_IMAGE": 2,
                "IMAGE_TOO_LARGE": 2,
                "INVALID_PIXELS": 2,
            }
            for outcome, count in outcomes.items():
                labels = {**SERVED, "outcome": outcome}
                assert metrics.registry.get_sample_value("lenserve_images_total", labels) == count

    async def test_a_request_with_only_bad_images_runs_no_network(self, open_classifier: Open) -> None:
        """Each image has its error."""
        async with open_classifier() as (classifier, metrics):
            answer = await classifier.classify([b"", b"junk"], model=NAME)
            assert [type(result) for result in answer.results] == [EmptyImage, UndecodableImage]
            assert not metrics.registry.get_sample_value("lenserve_batch_size_count", SERVED)

    @pytest.mark.parametrize(("top_k", "count"), [(0, 2), (1, 1), (3, 3), (4, 3), (10**9, 3)])
    async def test_top_k_is_the_number_of_labels(self, open_classifier: Open, top_k: int, count: int) -> None:
        """0 means the default, here 2; more than the model has means all."""
        async with open_classifier(default_top_k=2) as (classifier, _):
            answer = await classifier.classify([_png("green")], model=NAME, top_k=top_k)
            (ranking,) = answer.results
            assert isinstance(ranking, tuple)
            assert len(ranking) == count
            assert ranking[0].label == "green"
            assert [each.probability for each in ranking] == sorted(
                (each.probability for each in ranking), reverse=True
            )

    async def test_ties_go_to_the_lower_index(self, open_classifier: Open) -> None:
        """A grey image is equally red, green and blue: the labels keep their order."""
        async with open_classifier() as (classifier, _):
            answer = await classifier.classify([np.full((8, 8), 99, np.uint8)], model=NAME)
            assert isinstance(answer.results[0], tuple)
            assert [each.index for each in answer.results[0]] == [0, 1, 2]

    @pytest.mark.parametrize(
        ("count", "top_k", "message"),
        [
            (0, 0, "the request has 0 images, expected 1 to 5"),
            (6, 0, "the request has 6 images, expected 1 to 5"),
            (1, -1, "top_k is -1, expected at least 0"),
        ],
    )
    async def test_an_invalid_request_is_rejected_with_both_numbers(
        self, open_classifier: Open, count: int, top_k: int, message: str
    ) -> None:
        """Before anything is decoded."""
        async with open_classifier(max_images=5) as (classifier, metrics):
            with pytest.raises(InvalidRequest) as caught:
                await classifier.classify([_png("red")] * count, model=NAME, top_k=top_k)
            assert str(caught.value) == message
            assert _decoded(metrics) == 0

    async def test_a_deadline_that_has_passed_decodes_nothing(self, open_classifier: Open) -> None:
        """No work is done for an answer that would be late."""
        async with open_classifier() as (classifier, metrics):
            with pytest.raises(DeadlineExceeded, match="before the images were decoded"):
                await classifier.classify([_png("red")], model=NAME, deadline_s=time.monotonic())
            assert _decoded(metrics) == 0
            assert classifier.admission.pending == 0

    async def test_a_request_beyond_the_limit_is_rejected_at_once(self, open_classifier: Open) -> None:
        """The message has both numbers, and nothing is decoded."""
        async with open_classifier(max_pending_images=3) as (classifier, metrics):
            classifier.admission.enter(2, Backlog())
            with pytest.raises(Overloaded, match="2 images are pending, 2 more"):
                await classifier.classify([_png("red")] * 2, model=NAME)
            assert _decoded(metrics) == 0
            assert metrics.registry.get_sample_value("lenserve_pending_images") == 2

    async def test_places_are_always_released(self, open_classifier: Open) -> None:
        """After an answer, an unknown model and a cancellation, nothing is pending or leased."""
        async with open_classifier() as (classifier, metrics):
            await classifier.classify([_png("red")], model=NAME)
            with pytest.raises(UnknownModel):
                await classifier.classify([_png("red")], model="nobody")
            call = asyncio.ensure_future(classifier.classify([_png("red")] * 3, model=NAME))
            await asyncio.sleep(0)
            assert metrics.registry.get_sample_value("lenserve_pending_images") == 3
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert metrics.registry.get_sample_value("lenserve_pending_images") == 0

    async def test_every_stage_is_measured(self, open_classifier: Open) -> None:
        """Decoding for each image, queue and network for each batch, and the number of images."""
        async with open_classifier() as (classifier, metrics):
            await classifier.classify([_png("red")] * 3, model=NAME)
            value = metrics.registry.get_sample_value
            stages = {
                stage: value("lenserve_stage_duration_seconds_count", {**SERVED, "stage": stage})
                for stage in ("decode", "queue", "infer")
            }
            assert stages == {"decode": 3, "queue": 1, "infer": 1}
            assert value("lenserve_batch_size_sum", SERVED) == 3
            assert value("lenserve_images_total", {**SERVED, "outcome": "OK"}) == 3


class TestInfer:
    """The network's raw outputs."""

    async def test_images_of_any_size_become_rows(self, open_classifier: Open) -> None:
        """Probabilities and embeddings in the order of the images."""
        async with open_classifier() as (classifier, _):
            inference = await classifier.infer([_png("blue"), _pixels("red")], model=NAME)
            assert (inference.model, inference.version, inference.labels) == (NAME, 1, COLOURS)
            assert inference.output.probabilities.argmax(axis=1).tolist() == [2, 0]
            np.testing.assert_allclose(inference.output.embedding, [[0, 0, 255], [255, 0, 0]], atol=1e-3)

    async def test_a_bad_image_fails_the_request_and_the_message_has_its_place(
        self, open_classifier: Open
    ) -> None:
        """A tensor cannot contain errors: the message names the first bad image."""
        async with open_classifier() as (classifier, metrics):
            with pytest.raises(UndecodableImage, match=r"^image 1: the image cannot be decoded"):
                await classifier.infer([_png("red"), b"junk", b""], model=NAME)
            assert not metrics.registry.get_sample_value("lenserve_batch_size_count", SERVED)

    async def test_a_tensor_in_the_networks_geometry_is_run_unchanged(self, open_classifier: Open) -> None:
        """Its outputs are those of images of that size, also over several batches."""
        tensor = np.random.default_rng(1).integers(0, 256, (11, 8, 8, 3), np.uint8)  # (N, H, W, C)
        async with open_classifier() as (classifier, metrics):
            of_tensor = await classifier.infer_tensor(tensor, model=NAME)
            of_images = await classifier.infer(list(tensor), model=NAME)
            np.testing.assert_array_equal(of_tensor.output.probabilities, of_images.output.probabilities)
            assert of_tensor.output.embedding.shape == (11, 3)
            assert _decoded(metrics) == 11

    @pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 9, 3), (8, 8, 3), (2, 3, 8, 8), ()])
    async def test_a_tensor_of_another_shape_is_rejected_with_both_shapes(
        self, open_classifier: Open, shape: tuple[int, ...]
    ) -> None:
        """The actual and the expected shape, with -1 for any number of images."""
        async with open_classifier() as (classifier, _):
            with pytest.raises(InvalidTensor) as caught:
                await classifier.infer_tensor(np.zeros(shape, np.uint8), model=NAME)
            assert f"Expected [-1, 8, 8, 3], got {list(shape)}" in str(caught.value)

    @pytest.mark.parametrize("count", [0, 6])
    async def test_too_many_or_no_rows_are_rejected_with_both_numbers(
        self, open_classifier: Open, count: int
    ) -> None:
        """Rows have the limits of images."""
        async with open_classifier(max_images=5) as (classifier, _):
            with pytest.raises(InvalidRequest, match=f"the request has {count} images, expected 1 to 5"):
                await classifier.infer_tensor(np.zeros((count, 8, 8, 3), np.uint8), model=NAME)

    async def test_a_late_tensor_is_not_run(self, open_classifier: Open) -> None:
        """Its deadline is checked before the network runs."""
        async with open_classifier() as (classifier, metrics):
            tensor = np.zeros((1, 8, 8, 3), np.uint8)
            with pytest.raises(DeadlineExceeded):
                await classifier.infer_tensor(tensor, model=NAME, deadline_s=time.monotonic())
            assert not metrics.registry.get_sample_value("lenserve_batch_size_count", SERVED)

    async def test_describe_names_the_version_that_would_answer(self, open_classifier: Open) -> None:
        """With its manifest, also by number."""
        async with open_classifier() as (classifier, _):
            for revision in (None, 1):
                number, manifest = classifier.describe(NAME, revision)
                assert (number, manifest.labels) == (1, COLOURS)
            with pytest.raises(UnknownModel):
                classifier.describe(NAME, 2)


class TestEngineFailures:
    """A network that fails on good images."""

    async def test_one_failure_fails_its_request_and_the_engine_stays(self, open_classifier: Open) -> None:
        """It passes its proof again, and the next request is answered."""
        engine = _Failing()
        async with open_classifier(load_engine=engine.load) as (classifier, _):
            engine.failures = 1
            with pytest.raises(EngineError, match="out of luck"):
                await classifier.classify([_png("red")], model=NAME)
            answer = await classifier.classify([_png("red")], model=NAME, top_k=1)
            assert _labels(answer) == ["red"]

    async def test_the_rest_of_a_failed_request_is_not_run(self, open_classifier: Open) -> None:
        """The first of its ten batches fails: those in the queue are cancelled."""
        engine = _Failing()
        async with open_classifier(load_engine=engine.load) as (classifier, _):
            engine.failures = 1
            with pytest.raises(EngineError, match="out of luck"):
                await classifier.classify([_png("green")] * 40, model=NAME)
            await classifier.classify([_png("red")], model=NAME)  # queued behind all batches
        green = _pixels("green", 8)
        assert sum(bool((run == green).all()) for run in engine.runs) < 5

    async def test_an_engine_that_keeps_failing_is_broken(self, open_classifier: Open) -> None:
        """Later requests get ModelUnavailable, and nothing is run."""
        engine = _Failing()
        async with open_classifier(load_engine=engine.load) as (classifier, _):
            engine.failures = math.inf
            with pytest.raises(EngineError):
                await classifier.classify([_png("red")], model=NAME)
            with pytest.raises(ModelUnavailable, match="version 1 of model 'colours' is broken: out of luck"):
                await classifier.classify([_png("red")], model=NAME)

    async def test_a_lack_of_memory_is_not_the_engines_fault(
        self, open_classifier: Open, log_events: LogEvents
    ) -> None:
        """The engine is not proven again, and requests that fit are answered."""
        engine = _Failing(OutOfMemory("the device is out of memory for 1 images"))
        async with open_classifier(load_engine=engine.load) as (classifier, _):
            engine.failures = 3
            engine.runs.clear()
            for _ in range(3):
                with pytest.raises(OutOfMemory, match="out of memory for 1 images"):
                    await classifier.classify([_png("red")], model=NAME)
            assert len(engine.runs) == 3
            answer = await classifier.classify([_png("red")], model=NAME, top_k=1)
            assert _labels(answer) == ["red"]
            assert len(log_events.named("out_of_memory")) == 3


class _Failing:
    """A real network whose first runs fail."""

    max_images_on_loop = 0

    def __init__(self, error: EngineError | None = None) -> None:
        self.failures: float = 0
        self._error = error or EngineError("out of luck")
        self.runs: list[Pixels] = []
        self._engine: OnnxEngine | None = None

    def load(self, file: Path) -> "_Failing":
        self._engine = OnnxEngine.load(file, CPU, threads=1, max_batch_size=4)
        return self

    def run(self, images: Pixels) -> Output:
        self.runs.append(images)
        if self.failures:
            self.failures -= 1
            raise self._error
        assert self._engine is not None
        return self._engine.run(images)


def _pixels(colour: str, side: int = 12) -> Pixels:
    pixels = np.zeros((side, side, 3), np.uint8)  # (H, W, C)
    pixels[..., COLOURS.index(colour)] = 255
    return pixels


def _png(colour: str, side: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(colour, side)).save(buffer, "PNG")
    return buffer.getvalue()


def _labels(answer: Classification) -> list[str]:
    return [result[0].label if isinstance(result, tuple) else result.reason for result in answer.results]


def _decoded(metrics: Metrics) -> float:
    labels = {**SERVED, "stage": "decode"}
    return metrics.registry.get_sample_value("lenserve_stage_duration_seconds_count", labels) or 0


class Poisoned:
    """A real network that gives NaN for white images, and for all once it is broken."""

    max_images_on_loop = 0

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self.broken = False

    def run(self, images: Pixels) -> Output:
        """Run, and spoil some rows."""
        output = self._engine.run(images)
        white = (images == 255).all(axis=(1, 2, 3)) | self.broken
        return Output(
            np.where(white[:, np.newaxis], np.float32(np.nan), output.probabilities), output.embedding
        )


OpenPoisoned = Callable[..., AbstractAsyncContextManager[tuple[Classifier, Metrics, list[Poisoned]]]]

WHITE = np.full((8, 8, 3), 255, np.uint8)


class TestInvalidOutputs:
    """A network whose probabilities cannot be right."""

    async def test_only_the_image_itself_fails(self, open_poisoned: OpenPoisoned) -> None:
        """Others of the same request and of the same batch have their answers; it is counted."""
        async with open_poisoned() as (classifier, metrics, _):
            together = [classifier.classify([_pure(1), WHITE, _pure(2)], model=NAME)]
            together += [classifier.classify([_pure(0)], model=NAME) for _ in range(3)]
            mixed, *others = await asyncio.gather(*together)
        first, failed, last = mixed.results
        assert isinstance(failed, InvalidOutput)
        assert "NaN" in str(failed)
        assert [_top(first), _top(last)] == ["green", "blue"]
        assert [_top(each.results[0]) for each in others] == ["red"] * 3
        assert _images(metrics, "INVALID_OUTPUT") == 1
        assert _images(metrics, "OK") == 5

    async def test_a_tensor_with_such_an_image_fails(self, open_poisoned: OpenPoisoned) -> None:
        """Its outputs have no place for an error."""
        async with open_poisoned() as (classifier, metrics, _):
            with pytest.raises(InvalidOutput):
                await classifier.infer_tensor(np.stack([_pure(0), WHITE]), model=NAME)
        assert metrics.registry.get_sample_value(
            "lenserve_request_failures_total", {**SERVED, "reason": "INVALID_OUTPUT"}
        )

    async def test_after_a_few_the_version_proves_itself_again(
        self, open_poisoned: OpenPoisoned, log_events: LogEvents
    ) -> None:
        """A sound engine stays; a broken one is taken out of service."""
        async with open_poisoned() as (classifier, _, engines):
            for _ in range(3):
                await classifier.classify([WHITE], model=NAME)
            await log_events.wait_for("invalid_outputs")
            assert _top((await classifier.classify([_pure(0)], model=NAME)).results[0]) == "red"
            engines[0].broken = True
            for _ in range(3):
                with suppress(ModelUnavailable):
                    await classifier.classify([_pure(0)], model=NAME)
            await log_events.wait_for("version_broken")
            with pytest.raises(ModelUnavailable, match="NaN"):
                await classifier.classify([_pure(0)], model=NAME)

    async def test_images_that_provoke_them_do_not_cause_one_proof_after_another(
        self, open_poisoned: OpenPoisoned, log_events: LogEvents
    ) -> None:
        """A proof costs as much as some fifty images."""
        async with open_poisoned(proof_pause_s=3600) as (classifier, _, _engines):
            for _ in range(12):
                await classifier.classify([WHITE], model=NAME)
        assert len(log_events.named("invalid_outputs")) == 1


@pytest.fixture
def open_poisoned(publish: Publish, open_models: OpenModels) -> OpenPoisoned:
    """A classifier over a poisoned network."""

    @asynccontextmanager
    async def opened(
        *, proof_pause_s: float = 0.0
    ) -> AsyncIterator[tuple[Classifier, Metrics, list[Poisoned]]]:
        publish()
        metrics, engines = Metrics(), list[Poisoned]()

        def load(file: Path) -> Poisoned:
            engines.append(Poisoned(OnnxEngine.load(file, CPU, threads=1, max_batch_size=4)))
            return engines[-1]

        async with (
            open_models(metrics=metrics, load_engine=load, proof_pause_s=proof_pause_s) as models,
            Classifier(models, metrics=metrics) as classifier,
        ):
            yield classifier, metrics, engines

    return opened


def _pure(channel: int) -> Pixels:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., channel] = 255
    return pixels


def _top(result: object) -> str:
    assert isinstance(result, tuple)
    return str(result[0].label)


def _images(metrics: Metrics, outcome: str) -> float | None:
    return metrics.registry.get_sample_value("lenserve_images_total", {**SERVED, "outcome": outcome})
