"""Decodes images and converts them to a network's geometry: in threads; small ones on the event loop."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from serving.bundle import Geometry, ImageLimits, apply_geometry, check_pixels, decode_image
from serving.bundle.images import Pixels, check_encoded_size
from serving.errors import DeadlineExceeded, ImageError, ImageTooLarge, forget_frames

# An encoded file, decoded (H, W) or (H, W, C) uint8, or the error of an image that could not be parsed. A
# memoryview is a part of a large request: it is copied in a thread.
Image = bytes | memoryview | Pixels | ImageError

# Decoding a small PNG takes less time than a switch to a thread and back (tests/benchmarks/choices.py).
# Images up to these limits are decoded on the event loop, if the request has few enough of them.
_SMALL = ImageLimits(max_bytes=4096, max_pixels=4096)
_FEW = 8


class Preprocessed(NamedTuple):
    """One preprocessed image, and how long that took."""

    pixels: Pixels | ImageError  # (height, width, channels) uint8, or the image's error
    duration_s: float


class Preprocessor:
    """The worker threads that decode and resize."""

    def __init__(self, limits: ImageLimits, threads: int) -> None:
        self._limits = limits
        self._small = ImageLimits(
            max_bytes=min(limits.max_bytes, _SMALL.max_bytes),
            max_pixels=min(limits.max_pixels, _SMALL.max_pixels),
        )
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Cancel the images that wait for a thread. Running ones are completed."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def preprocess(
        self, images: Sequence[Image], geometry: Geometry, deadline_s: float = math.inf
    ) -> list[Preprocessed]:
        """Decode each image and convert it to the geometry. Errors of single images are results.

        Cancelling skips the rest, and frees the images that wait for a thread.

        Args:
            images: they may be of any size.
            geometry: that of the network.
            deadline_s: on the clock of time.monotonic().

        Raises:
            DeadlineExceeded: the deadline passed while an image waited for a thread.
        """
        on_loop = [self._preprocess_if_cheap(image, geometry, len(images)) for image in images]
        jobs = [
            _Job(image, self._limits, geometry, deadline_s)
            for image, done in zip(images, on_loop, strict=True)
            if done is None
        ]
        run = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        try:
            in_threads = await asyncio.gather(*map(run, jobs))
        finally:
            for job in jobs:  # a cancelled job stays in the queue until a thread is free
                job.drop()
        rest = iter(in_threads)
        return [next(rest) if done is None else done for done in on_loop]

    def _preprocess_if_cheap(self, image: Image, geometry: Geometry, count: int) -> Preprocessed | None:
        """Return None if it would block the event loop for too long."""
        if isinstance(image, np.ndarray):
            is_ready = image.shape == geometry.shape
            return _preprocess(image, limits=self._limits, geometry=geometry) if is_ready else None
        if isinstance(image, ImageError):
            return Preprocessed(image, 0.0)
        small = self._small
        if (
            len(image) > small.max_bytes
            or geometry.height * geometry.width > small.max_pixels
            or count > _FEW
        ):
            return None
        preprocessed = _preprocess(image, limits=small, geometry=geometry)
        return None if isinstance(preprocessed.pixels, ImageTooLarge) else preprocessed


class _Dropped(Exception):
    """Ends work whose call is over. Its future is cancelled, so this error reaches no caller."""


class _Job:
    """One image that waits for a thread. Its owner may drop it: then it holds no memory, and does no work."""

    __slots__ = ("_deadline_s", "_geometry", "_image", "_limits")

    def __init__(self, image: Image, limits: ImageLimits, geometry: Geometry, deadline_s: float) -> None:
        self._image: Image | None = image
        self._limits = limits
        self._geometry = geometry
        self._deadline_s = deadline_s

    def drop(self) -> None:
        """Forget the image."""
        self._image = None

    def __call__(self) -> Preprocessed:
        image = self._image
        if image is None:
            raise _Dropped
        if time.monotonic() >= self._deadline_s:
            raise DeadlineExceeded("the deadline passed before the images were decoded")
        return _preprocess(image, limits=self._limits, geometry=self._geometry, is_wanted=self._is_wanted)

    def _is_wanted(self) -> bool:
        return self._image is not None


def _preprocess(
    image: Image, *, limits: ImageLimits, geometry: Geometry, is_wanted: Callable[[], bool] = lambda: True
) -> Preprocessed:
    started_s = time.perf_counter()
    try:
        if isinstance(image, ImageError):
            return Preprocessed(image, 0.0)
        if isinstance(image, memoryview):
            check_encoded_size(len(image), limits)
            image = bytes(image)
        pixels = decode_image(image, limits) if isinstance(image, bytes) else check_pixels(image, limits)
        if not is_wanted():
            raise _Dropped
        return Preprocessed(apply_geometry(pixels, geometry), time.perf_counter() - started_s)
    except ImageError as error:
        forget_frames(error)  # a result, not a failure
        return Preprocessed(error, time.perf_counter() - started_s)
