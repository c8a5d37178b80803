"""Decodes images and converts them to a network's geometry: in threads; small ones on the event loop."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from serving.bundle import Geometry, ImageLimits, apply_geometry, check_pixels, decode_image
from serving.bundle.images import Pixels
from serving.errors import ImageError, ImageTooLarge

# An encoded file, decoded (H, W) or (H, W, C) uint8, or the error of an image that could not be parsed.
Image = bytes | Pixels | ImageError

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

    async def preprocess(self, images: Sequence[Image], geometry: Geometry) -> list[Preprocessed]:
        """Decode each image and convert it to the geometry. Errors are results. Cancelling skips the rest."""
        on_loop = [self._preprocess_if_cheap(image, geometry, len(images)) for image in images]
        preprocess = partial(_preprocess, limits=self._limits, geometry=geometry)
        loop = asyncio.get_running_loop()
        in_threads = await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, preprocess, image)
                for image, done in zip(images, on_loop, strict=True)
                if done is None
            )
        )
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


def _preprocess(image: Image, *, limits: ImageLimits, geometry: Geometry) -> Preprocessed:
    started_s = time.perf_counter()
    try:
        if isinstance(image, ImageError):
            raise image
        pixels = decode_image(image, limits) if isinstance(image, bytes) else check_pixels(image, limits)
        return Preprocessed(apply_geometry(pixels, geometry), time.perf_counter() - started_s)
    except ImageError as error:
        return Preprocessed(error, time.perf_counter() - started_s)
