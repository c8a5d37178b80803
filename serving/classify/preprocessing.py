"""Images -> pixels in a network's geometry: in worker threads, or at once where the way there costs more."""

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

# An encoded file, decoded (H, W) or (H, W, C) uint8, or what was wrong with it already on the wire.
Image = bytes | Pixels | ImageError

# A small PNG takes less than a worker thread and back (tests/benchmarks/choices.py): what is no larger than
# this, and comes in no larger number, is decoded on the event loop.
_SMALL = ImageLimits(max_bytes=4096, max_pixels=4096)
_FEW = 8


class Prepared(NamedTuple):
    """One image, and what it took."""

    pixels: Pixels | ImageError  # (height, width, channels) uint8, or what is wrong with it
    duration_s: float


class Preparation:
    """The worker threads that decode and resize."""

    def __init__(self, limits: ImageLimits, threads: int) -> None:
        self._limits = limits
        self._small = ImageLimits(
            max_bytes=min(limits.max_bytes, _SMALL.max_bytes),
            max_pixels=min(limits.max_pixels, _SMALL.max_pixels),
        )
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, images: Sequence[Image], geometry: Geometry) -> list[Prepared]:
        """Decode each image, as long as nobody cancels, and bring it into geometry. Errors are results."""
        at_once = [self._prepare_at_once(image, geometry, len(images)) for image in images]
        prepare = partial(_prepare, limits=self._limits, geometry=geometry)
        loop = asyncio.get_running_loop()
        in_threads = await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, prepare, image)
                for image, done in zip(images, at_once, strict=True)
                if done is None
            )
        )
        rest = iter(in_threads)
        return [next(rest) if done is None else done for done in at_once]

    def _prepare_at_once(self, image: Image, geometry: Geometry, count: int) -> Prepared | None:
        """None where that would hold the event loop up."""
        if isinstance(image, np.ndarray):
            is_ready = image.shape == geometry.shape
            return _prepare(image, limits=self._limits, geometry=geometry) if is_ready else None
        if isinstance(image, ImageError):
            return Prepared(image, 0.0)
        small = self._small
        if (
            len(image) > small.max_bytes
            or geometry.height * geometry.width > small.max_pixels
            or count > _FEW
        ):
            return None
        prepared = _prepare(image, limits=small, geometry=geometry)
        return None if isinstance(prepared.pixels, ImageTooLarge) else prepared


def _prepare(image: Image, *, limits: ImageLimits, geometry: Geometry) -> Prepared:
    started_s = time.perf_counter()
    try:
        if isinstance(image, ImageError):
            raise image
        pixels = decode_image(image, limits) if isinstance(image, bytes) else check_pixels(image, limits)
        return Prepared(apply_geometry(pixels, geometry), time.perf_counter() - started_s)
    except ImageError as error:
        return Prepared(error, time.perf_counter() - started_s)
