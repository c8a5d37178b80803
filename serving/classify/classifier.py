"""The use case: images in, ranked labels out. Independent of gRPC: a script can use it.

admission control -> preprocessing (worker threads) -> batcher -> ranking

async with Models(loader) as models, Classifier(models, ...) as classifier:
    await models.scanned()
    answer = await classifier.classify([Path("digit.png").read_bytes()], model="lenet5-digits")
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from serving.batching.batcher import NO_DEADLINE_S
from serving.bundle import ImageLimits, Manifest
from serving.bundle.images import Pixels
from serving.capture.capture import Capture
from serving.classify.admission import DEFAULT_MAX_QUEUE_S, Admission
from serving.classify.deadlines import is_late
from serving.classify.preprocessing import FEW_IMAGES, Image, Preprocessor, is_small
from serving.classify.results import (
    LABELS_PER_SLICE,
    Classification,
    Inference,
    Ranking,
    rank,
    row_slices,
)
from serving.engine.base import Output
from serving.errors import (
    DeadlineExceeded,
    EngineError,
    ImageError,
    InvalidOutput,
    InvalidRequest,
    InvalidTensor,
    LenserveError,
    OutOfMemory,
    Overloaded,
    forget_frames,
)
from serving.metrics.recorder import Metrics
from serving.models.registry import Models
from serving.models.versions import Revision, Version
from serving.turns import Turns

# To decode a small image on the event loop: see preprocessing.py.
_SMALL_IMAGE_US = 30

_log = logging.getLogger(__name__)


class Classifier:
    """Classifies images with the versions that `Models` serves."""

    def __init__(
        self,
        models: Models,
        *,
        metrics: Metrics,
        limits: ImageLimits | None = None,
        max_images: int = 128,
        max_pending_images: int = 1024,
        max_queue_s: float = DEFAULT_MAX_QUEUE_S,
        default_top_k: int = 5,
        decode_threads: int = 1,
        turns: Turns | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.limits = limits or ImageLimits()
        self.max_images = max_images
        self.default_top_k = default_top_k
        self.turns = turns or Turns()
        self._models = models
        self._capture = capture
        self._preprocessor = Preprocessor(self.limits, decode_threads)
        self.admission = Admission(max_pending_images, self._preprocessor, max_queue_s=max_queue_s)
        metrics.pending_images.labels().set_function(lambda: self.admission.pending)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._preprocessor.close()

    def check_count(self, count: int) -> None:
        """Check the number of images of a request. It is cheapest to reject a request before it is decoded.

        Raises:
            InvalidRequest: there are none, or too many.
        """
        if not 1 <= count <= self.max_images:
            raise InvalidRequest(f"the request has {count} images, expected 1 to {self.max_images}")

    def check_admission(
        self, model: str, revision: Revision = None, deadline_s: float = NO_DEADLINE_S
    ) -> None:
        """Check whether a request could be admitted now. Its images need not have arrived.

        Args:
            model: as in `classify`.
            revision: as in `classify`.
            deadline_s: as in `classify`.

        Raises:
            UnknownModel, ModelUnavailable, Overloaded: see serving/errors.py.
        """
        version = self._models.lease(model, revision)
        try:
            self.admission.check_wait(version.backlog, deadline_s)
        except Overloaded as error:
            version.metrics.record_failure(error.reason, 0.0)
            raise

    async def classify(
        self,
        images: Sequence[Image],
        *,
        model: str,
        revision: Revision = None,
        top_k: int = 0,
        deadline_s: float = NO_DEADLINE_S,
        may_wait: bool = False,
    ) -> Classification:
        """Rank the labels of every image.

        Args:
            images: 1..max_images of them.
            model: name of the model.
            revision: a version, an alias, or None for the default version.
            top_k: labels per image; 0 means the default. If the model has fewer, all are returned.
            deadline_s: on the clock of time.monotonic().
            may_wait: whether to wait for a short queue instead of being refused, as requests of streams do.

        Raises:
            InvalidRequest: no image, too many, or a negative top_k. An error of a single image is its result.
            UnknownModel, ModelUnavailable, Overloaded, DeadlineExceeded, EngineError: see serving/errors.py.
        """
        self.check_count(len(images))
        if top_k < 0:
            raise InvalidRequest(f"top_k is {top_k}, expected at least 0")
        version = self._models.lease(model, revision)
        if may_wait and self.admission.is_long(version.backlog):
            version = await self._lease_in_turn(model, revision)
        with _AdmittedRequest(self.admission, version, len(images), deadline_s) as request:
            preprocessed = await self._preprocess(images, version, deadline_s)
            if self._capture is None:
                images = ()  # files can be much larger than the pixels that wait for the network
            good = [pixels for pixels in preprocessed if not isinstance(pixels, ImageError)]
            request.failed_images = len(preprocessed) - len(good)
            answers: Sequence[Ranking | InvalidOutput] = ()
            started_s = time.perf_counter()
            if good:
                try:
                    output = await self._run(np.stack(good), version, deadline_s)
                    started_s = time.perf_counter()
                    answers = await self._rank(output, version, top_k or self.default_top_k)
                    if self._capture is not None:
                        _offer(self._capture, _decodable(images, preprocessed), output, version)
                except InvalidOutput as error:
                    answers = await self._answer_each(good, error, version, deadline_s, top_k)
                    request.failed_images += sum(isinstance(each, InvalidOutput) for each in answers)
            answer = iter(answers)
            results = tuple(
                pixels if isinstance(pixels, ImageError) else next(answer) for pixels in preprocessed
            )
            version.metrics.record_ranking(time.perf_counter() - started_s)
            return Classification(model, version.number, results)

    async def infer(
        self,
        images: Sequence[Image],
        *,
        model: str,
        revision: Revision = None,
        deadline_s: float = NO_DEADLINE_S,
        priority: int = 0,
        may_wait: bool = False,
    ) -> Inference:
        """Run the network on images of any size. One invalid image fails the request.

        Args:
            images: as in `classify`.
            model: as in `classify`.
            revision: as in `classify`.
            deadline_s: as in `classify`.
            priority: 0 is the most urgent.
            may_wait: as in `classify`.

        Raises:
            ImageError: an image is invalid; names the first one.
            Others as `classify`.
        """
        self.check_count(len(images))
        version = self._models.lease(model, revision)
        if may_wait and self.admission.is_long(version.backlog):
            version = await self._lease_in_turn(model, revision)
        with _AdmittedRequest(self.admission, version, len(images), deadline_s):
            preprocessed = await self._preprocess(images, version, deadline_s)
            if self._capture is None:
                images = ()
            for place, pixels in enumerate(preprocessed):
                if isinstance(pixels, ImageError):
                    raise type(pixels)(f"image {place}: {pixels}")
            good = [pixels for pixels in preprocessed if not isinstance(pixels, ImageError)]
            output = await self._run(np.stack(good), version, deadline_s, priority)
            if self._capture is not None:
                _offer(self._capture, images, output, version)
            return _inference(version, output)

    async def infer_tensor(
        self,
        tensor: Pixels,
        *,
        model: str,
        revision: Revision = None,
        deadline_s: float = NO_DEADLINE_S,
        priority: int = 0,
        may_wait: bool = False,
    ) -> Inference:
        """Run the network on pixels that already have its geometry.

        Args:
            tensor: (N, height, width, channels) uint8, 1 <= N <= max_images.
            model: as in `classify`.
            revision: as in `classify`.
            deadline_s: as in `classify`.
            priority: as in `infer`.
            may_wait: as in `classify`.

        Raises:
            InvalidTensor: the shape is wrong.
            Others as `classify`.
        """
        version = self._models.lease(model, revision)
        if may_wait and self.admission.is_long(version.backlog):
            version = await self._lease_in_turn(model, revision)
        if tensor.shape[1:] != version.input_shape:
            raise InvalidTensor(
                f"unexpected shape for input 'image' for model {model!r}. "
                f"Expected {[-1, *version.input_shape]}, got {list(tensor.shape)}"
            )
        self.check_count(len(tensor))
        with _AdmittedRequest(self.admission, version, len(tensor), deadline_s):
            output = await self._run(tensor, version, deadline_s, priority)
            if self._capture is not None:
                _offer(self._capture, tensor, output, version)
            return _inference(version, output)

    def describe(self, model: str, revision: Revision = None) -> tuple[int, Manifest]:
        """The version that would answer a request now, and its manifest."""
        with self._models.lease(model, revision) as version:
            return version.number, version.bundle.manifest

    async def _lease_in_turn(self, model: str, revision: Revision) -> Version:
        """Wait for a short queue, or until it is the turn of this request of a stream."""
        version, is_turn = self._models.lease(model, revision), False
        # A call may have taken the free place before this task ran again: then it waits for the next one.
        while self.admission.is_long(version.backlog) and (
            not is_turn or self.admission.is_full(version.backlog)
        ):
            is_turn = await self.admission.turn(version.backlog)
            version = self._models.lease(model, revision)
        return version

    async def _preprocess(
        self, images: Sequence[Image], version: Version, deadline_s: float
    ) -> Sequence[Pixels | ImageError]:
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded("the deadline passed before the images were decoded")
        if 1 < len(images) <= FEW_IMAGES:
            small = sum(map(is_small, images))
            if small:
                await self.turns.take(_SMALL_IMAGE_US * small)
        preprocessed = await self._preprocessor.preprocess(
            images, version.bundle.manifest.geometry, deadline_s, version.backlog
        )
        for each in preprocessed:
            version.metrics.record_decode(each.duration_s)
            if isinstance(each.pixels, ImageError):
                version.metrics.count_images(each.pixels.reason)
        return [each.pixels for each in preprocessed]

    async def _answer_each(
        self, images: Sequence[Pixels], error: InvalidOutput, version: Version, deadline_s: float, top_k: int
    ) -> list[Ranking | InvalidOutput]:
        """Run the images of a request with an invalid output again, each alone: the others have an answer."""
        if len(images) == 1:
            forget_frames(error)  # a result, not a failure
            return [error]
        answers: list[Ranking | InvalidOutput] = []
        for pixels in images:
            try:
                output = await self._run(pixels[np.newaxis], version, deadline_s)
                answers += await self._rank(output, version, top_k or self.default_top_k)
            except InvalidOutput as alone:
                forget_frames(alone)  # a result, not a failure
                answers.append(alone)
        return answers

    async def _rank(self, output: Output, version: Version, top_k: int) -> list[Ranking]:
        rows, labels = output.probabilities, version.bundle.manifest.labels
        count = min(top_k, len(labels))  # of each image
        if len(rows) * count <= LABELS_PER_SLICE:
            return [rank(row, labels, top_k) for row in rows]
        rankings: list[Ranking] = []
        for part in row_slices(len(rows), count):
            await self.turns.take(len(rows[part]) * count)
            rankings.extend(rank(row, labels, top_k) for row in rows[part])
        return rankings

    async def _run(self, images: Pixels, version: Version, deadline_s: float, priority: int = 0) -> Output:
        """Run (n, H, W, C) uint8, split into parts of at most the largest batch."""
        size = version.batcher.policy.max_batch_size
        submit = version.batcher.submit
        try:
            if len(images) <= size:
                output = await submit(images, deadline_s, priority)
            else:
                starts = range(0, len(images), size)
                output = await _concatenated(
                    [submit(images[at : at + size], deadline_s, priority) for at in starts]
                )
        except asyncio.CancelledError:
            version.batcher.drop_abandoned()
            raise
        except OutOfMemory as error:  # the engine works: proving it again would need even more memory
            _log.warning("out_of_memory", extra=version.log_fields(reason=str(error)))
            raise
        except InvalidOutput as error:
            if len(images) == 1:
                version.metrics.count_images(error.reason)
            self._models.note_invalid_output(version)
            raise
        except EngineError:
            await self._models.check_engine(version)
            raise
        return output


class _AdmittedRequest:
    """Holds the places and the version of one request, and records its outcome."""

    __slots__ = ("_admission", "_deadline_s", "_images", "_started_s", "_version", "failed_images")

    def __init__(self, admission: Admission, version: Version, images: int, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._version = version
        self.failed_images = 0
        self._admission = admission
        self._images = images

    def __enter__(self) -> Self:
        self._started_s = time.perf_counter()
        try:
            self._admission.enter(self._images, self._version.backlog, self._deadline_s)
        except Overloaded as error:
            self._version.metrics.record_failure(error.reason, 0.0)
            raise
        try:
            self._version.__enter__()
        except BaseException:
            self._admission.leave(self._images, self._version.backlog)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._version.__exit__(kind, error, trace)
        self._admission.leave(self._images, self._version.backlog)
        duration_s = time.perf_counter() - self._started_s
        if error is None:
            self._version.metrics.record_success(self._images - self.failed_images, duration_s)
        else:
            self._version.metrics.record_failure(self._reason(error, duration_s), duration_s)

    def _reason(self, error: BaseException, duration_s: float) -> str:
        if isinstance(error, LenserveError):
            return error.reason
        if not isinstance(error, asyncio.CancelledError):
            return "INTERNAL"
        return "DEADLINE_EXCEEDED" if is_late(self._deadline_s, duration_s) else "CANCELLED"


async def _concatenated(parts: Sequence[asyncio.Future[Output]]) -> Output:
    """Concatenate the outputs of all parts. If one fails, the others are cancelled."""
    try:
        outputs = await asyncio.gather(*parts)
    except BaseException:
        for part in parts:
            part.cancel()
        raise
    return Output(
        np.concatenate([output.probabilities for output in outputs]),
        np.concatenate([output.embedding for output in outputs]),
    )


def _decodable(images: Sequence[Image], preprocessed: Sequence[Pixels | ImageError]) -> list[Image]:
    """Return the images of a request that were decoded."""
    decoded = zip(images, preprocessed, strict=True)
    return [image for image, pixels in decoded if not isinstance(pixels, ImageError)]


def _offer(capture: Capture, images: Sequence[Image] | Pixels, output: Output, version: Version) -> None:
    """Offer the images of a request, all of which were answered, for capture."""
    sent = [image for image in images if not isinstance(image, ImageError)]
    bundle = version.bundle
    capture.offer(
        sent,
        output.probabilities,
        model=bundle.model,
        version=bundle.version,
        labels=bundle.manifest.labels,
    )


def _inference(version: Version, output: Output) -> Inference:
    return Inference(version.bundle.model, version.number, version.bundle.manifest.labels, output)
