"""The use case: images in, ranked labels out. Knows no gRPC and can be used from a script.

admission -> decode and geometry (worker threads) -> batcher -> rank

async with Models(loader) as models, Classifier(models, ...) as classifier:
    await models.scanned()
    answer = await classifier.classify([Path("digit.png").read_bytes()], model="lenet5-digits")
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from serving.batching.batcher import NO_DEADLINE_S
from serving.bundle import ImageLimits, Manifest
from serving.bundle.images import Pixels
from serving.classify.admission import Admission
from serving.classify.preprocessing import Image, Preparation
from serving.engine.base import Floats, Output
from serving.errors import (
    DeadlineExceeded,
    EngineError,
    ImageError,
    InvalidRequest,
    InvalidTensor,
    LenserveError,
    OutOfMemory,
)
from serving.metrics.recorder import Metrics
from serving.models.registry import Models
from serving.models.versions import Revision, Version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankedLabel:
    """One label of an image."""

    label: str
    index: int
    probability: float


Ranking = tuple[RankedLabel, ...]


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for several images, each with its ranking or its own error."""

    model: str
    version: int
    results: tuple[Ranking | ImageError, ...]


@dataclass(slots=True)
class Inference:
    """The network's raw answer for several images."""

    model: str
    version: int
    labels: tuple[str, ...]
    output: Output


def rank(probabilities: Floats, labels: Sequence[str], top_k: int) -> Ranking:
    """The most probable labels first; of equal ones the lower index first.

    Args:
        probabilities: (K,) float32.
        labels: K of them.
        top_k: at least 1; more than K means K.
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(RankedLabel(labels[index], int(index), float(probabilities[index])) for index in order)


class Classifier:
    """Answers for images with what `Models` has loaded."""

    def __init__(
        self,
        models: Models,
        *,
        metrics: Metrics,
        limits: ImageLimits | None = None,
        max_images: int = 128,
        max_pending_images: int = 1024,
        default_top_k: int = 5,
        decode_threads: int = 1,
    ) -> None:
        self.limits = limits or ImageLimits()
        self.max_images = max_images
        self.default_top_k = default_top_k
        self.admission = Admission(max_pending_images)
        self._models = models
        self._preparation = Preparation(self.limits, decode_threads)
        metrics.pending_images.set_function(lambda: self.admission.pending)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._preparation.close()

    async def classify(
        self,
        images: Sequence[Image],
        *,
        model: str,
        revision: Revision = None,
        top_k: int = 0,
        deadline_s: float = NO_DEADLINE_S,
    ) -> Classification:
        """Rank the labels of every image.

        Args:
            images: 1..max_images.
            model: its name.
            revision: a version, an alias, or None for the one served by default.
            top_k: labels an image gets; 0 means the default, more than there are means all.
            deadline_s: on the clock of time.monotonic().

        Raises:
            InvalidRequest: no image, too many, or a negative top_k. Errors of single images are results.
            UnknownModel, ModelUnavailable, Overloaded, DeadlineExceeded, EngineError: see there.
        """
        self._check_count(len(images))
        if top_k < 0:
            raise InvalidRequest(f"top_k is {top_k}, expected at least 0")
        version = self._models.lease(model, revision)
        with _Work(self.admission, version, len(images)) as work:
            prepared = await self._prepare(images, version, deadline_s)
            good = [pixels for pixels in prepared if not isinstance(pixels, ImageError)]
            work.failed_images = len(images) - len(good)
            output = await self._run(np.stack(good), version, deadline_s) if good else None
            started_s = time.perf_counter()
            labels = version.bundle.manifest.labels
            rows = iter(output.probabilities if output else ())
            results = tuple(
                pixels
                if isinstance(pixels, ImageError)
                else rank(next(rows), labels, top_k or self.default_top_k)
                for pixels in prepared
            )
            version.metrics.ranked(time.perf_counter() - started_s)
            return Classification(model, version.number, results)

    async def infer(
        self,
        images: Sequence[Image],
        *,
        model: str,
        revision: Revision = None,
        deadline_s: float = NO_DEADLINE_S,
        priority: int = 0,
    ) -> Inference:
        """Give the network's outputs for images of any size; one bad image fails them all.

        Args:
            images: as in `classify`.
            model: as in `classify`.
            revision: as in `classify`.
            deadline_s: as in `classify`.
            priority: levels below the most urgent, 0.

        Raises:
            ImageError: names the first bad image by its place.
            As `classify`.
        """
        self._check_count(len(images))
        version = self._models.lease(model, revision)
        with _Work(self.admission, version, len(images)):
            prepared = await self._prepare(images, version, deadline_s)
            for place, pixels in enumerate(prepared):
                if isinstance(pixels, ImageError):
                    raise type(pixels)(f"image {place}: {pixels}")
            good = [pixels for pixels in prepared if not isinstance(pixels, ImageError)]
            return _inference(version, await self._run(np.stack(good), version, deadline_s, priority))

    async def infer_tensor(
        self,
        tensor: Pixels,
        *,
        model: str,
        revision: Revision = None,
        deadline_s: float = NO_DEADLINE_S,
        priority: int = 0,
    ) -> Inference:
        """Give the network's outputs for pixels that are already in its geometry.

        Args:
            tensor: (N, height, width, channels) uint8, 1 <= N <= max_images.
            model: as in `classify`.
            revision: as in `classify`.
            deadline_s: as in `classify`.
            priority: as in `infer`.

        Raises:
            InvalidTensor: with the shape that came and the shape that is expected.
            As `classify`.
        """
        version = self._models.lease(model, revision)
        if tensor.shape[1:] != version.input_shape:
            raise InvalidTensor(
                f"unexpected shape for input 'image' for model {model!r}. "
                f"Expected {[-1, *version.input_shape]}, got {list(tensor.shape)}"
            )
        self._check_count(len(tensor))
        with _Work(self.admission, version, len(tensor)):
            return _inference(version, await self._run(tensor, version, deadline_s, priority))

    def describe(self, model: str, revision: Revision = None) -> tuple[int, Manifest]:
        """The version that would answer now, and its manifest."""
        with self._models.lease(model, revision) as version:
            return version.number, version.bundle.manifest

    def _check_count(self, count: int) -> None:
        if not 1 <= count <= self.max_images:
            raise InvalidRequest(f"the request has {count} images, expected 1 to {self.max_images}")

    async def _prepare(
        self, images: Sequence[Image], version: Version, deadline_s: float
    ) -> Sequence[Pixels | ImageError]:
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded("the deadline had passed before the images were decoded")
        prepared = await self._preparation.prepare(images, version.bundle.manifest.geometry)
        for each in prepared:
            version.metrics.decoded(each.duration_s)
            if isinstance(each.pixels, ImageError):
                version.metrics.image_outcome(each.pixels.reason)
        return [each.pixels for each in prepared]

    async def _run(self, images: Pixels, version: Version, deadline_s: float, priority: int = 0) -> Output:
        """Run (n, H, W, C) uint8 of any n, in parts of at most the largest batch."""
        size = version.batcher.policy.max_batch_size
        submit = version.batcher.submit
        try:
            if len(images) <= size:
                output = await submit(images, deadline_s, priority)
            else:
                starts = range(0, len(images), size)
                output = await _joined(
                    [submit(images[at : at + size], deadline_s, priority) for at in starts]
                )
        except OutOfMemory as error:  # a proof would only ask for more memory, and the network is sound
            _log.warning("out_of_memory", extra=version.log_fields(reason=str(error)))
            raise
        except EngineError:
            await self._models.check_engine(version)
            raise
        return output


class _Work:
    """One request's places inside and its hold on a version, and the record of how it ended."""

    __slots__ = ("_admission", "_images", "_started_s", "_version", "failed_images")

    def __init__(self, admission: Admission, version: Version, images: int) -> None:
        self._version = version
        self.failed_images = 0
        self._admission = admission
        self._images = images

    def __enter__(self) -> Self:
        self._started_s = time.perf_counter()
        self._admission.enter(self._images)
        try:
            self._version.__enter__()
        except BaseException:
            self._admission.leave(self._images)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._version.__exit__(kind, error, trace)
        self._admission.leave(self._images)
        duration_s = time.perf_counter() - self._started_s
        if error is None:
            self._version.metrics.request_ended(self._images - self.failed_images, duration_s)
        else:
            self._version.metrics.request_failed(_reason(error), duration_s)


def _reason(error: BaseException) -> str:
    if isinstance(error, LenserveError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"


async def _joined(parts: Sequence[asyncio.Future[Output]]) -> Output:
    """All of them; or none, and those that still wait leave the queue."""
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


def _inference(version: Version, output: Output) -> Inference:
    return Inference(version.bundle.model, version.number, version.bundle.manifest.labels, output)
