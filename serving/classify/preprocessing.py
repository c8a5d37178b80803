"""Decodes images and converts them to a network's geometry: in threads; small ones on the event loop."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from serving.batching.backlog import Backlog
from serving.bundle import Geometry, ImageLimits, apply_geometry, check_pixels, decode_image
from serving.bundle.images import Pixels, check_encoded_size
from serving.classify.decode_queue import DecodeQueue
from serving.errors import DeadlineExceeded, ImageError, ImageTooLarge, OutOfMemory, forget_frames

# An encoded file, decoded (H, W) or (H, W, C) uint8, or the error of an image that could not be parsed. A
# memoryview is a part of a large request: it is copied in a thread.
Image = bytes | memoryview | Pixels | ImageError

# Decoding a small PNG takes less time than a switch to a thread and back (tests/benchmarks/choices.py).
# Images up to these limits are decoded on the event loop, if the request has few enough of them.
_SMALL = ImageLimits(max_bytes=4096, max_pixels=4096, max_parts=100)
FEW_IMAGES = 8
# Chunks of a PNG that can inflate to a megabyte each.
_INFLATED = (b"zTXt", b"iTXt", b"iCCP")


def is_small(image: Image) -> bool:
    """Whether an image may be decoded on the event loop."""
    return isinstance(image, bytes) and len(image) <= _SMALL.max_bytes


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
            max_parts=_SMALL.max_parts,
        )
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._queue: DecodeQueue[_Job] = DecodeQueue(threads)
        self.wait_s = self._queue.wait_s  # estimates how long an image of a version would wait for a thread

    def close(self) -> None:
        """Cancel the images that wait for a thread. Running ones are completed."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while (job := self._queue.take()) is not None:
            job.result.cancel()

    def duration_s(self, images: int, backlog: Backlog) -> float:
        """Estimate how long images of a version take once it is their turn."""
        return -(-images // self._count) * backlog.decode_s

    async def preprocess(
        self,
        images: Sequence[Image],
        geometry: Geometry,
        deadline_s: float = math.inf,
        backlog: Backlog | None = None,
    ) -> list[Preprocessed]:
        """Decode each image and convert it to the geometry. Errors of single images are results.

        Cancelling skips the rest, and frees the images that wait for a thread.

        Args:
            images: they may be of any size.
            geometry: that of the network.
            deadline_s: on the clock of time.monotonic().
            backlog: of the version, which shares the threads with the others; None: a separate version.

        Raises:
            DeadlineExceeded: the deadline passed while an image waited for a thread.
        """
        on_loop = [self._preprocess_if_cheap(image, geometry, len(images)) for image in images]
        if None not in on_loop:
            return [done for done in on_loop if done is not None]
        loop, backlog = asyncio.get_running_loop(), backlog or Backlog()
        jobs = [
            _Job(image, self._limits, geometry, deadline_s, result=loop.create_future(), backlog=backlog)
            for image, done in zip(images, on_loop, strict=True)
            if done is None
        ]
        try:
            for job in jobs:
                self._queue.put(backlog, job)
                self._threads.submit(self._work, loop)
            in_threads = await asyncio.gather(*(job.result for job in jobs))
        finally:
            for job in jobs:  # a cancelled job stays in the queue until its turn
                job.drop()
        rest = iter(in_threads)
        return [next(rest) if done is None else done for done in on_loop]

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do the job whose turn it is. Called once for each job, in a thread."""
        job = self._queue.take()
        while job is not None and job.is_late:
            _call_soon(loop, job.expire)
            job = self._queue.take()
        if job is None:  # another thread has found that one is not wanted or late, and has taken the next
            return
        try:
            preprocessed = job.run()
        except BaseException as error:  # noqa: BLE001 - reaches the caller
            _call_soon(loop, job.fail, error)
        else:
            _call_soon(loop, job.finish, preprocessed)

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
            or count > FEW_IMAGES
            or any(kind in image for kind in _INFLATED)
        ):
            return None
        preprocessed = _preprocess(image, limits=small, geometry=geometry)
        return None if isinstance(preprocessed.pixels, ImageTooLarge) else preprocessed


class _Dropped(Exception):
    """Ends work whose call is over. Its future is cancelled, so this error reaches no caller."""


class _Job:
    """One image that waits for a thread. Its owner may drop it: then it holds no memory, and does no work.

    `run` is called in a thread, the other methods on the event loop.
    """

    __slots__ = ("_backlog", "_deadline_s", "_geometry", "_image", "_limits", "arrived_s", "result")

    def __init__(
        self,
        image: Image,
        limits: ImageLimits,
        geometry: Geometry,
        deadline_s: float,
        *,
        result: asyncio.Future[Preprocessed],
        backlog: Backlog,
    ) -> None:
        self.arrived_s = time.monotonic()
        self.result = result
        self._image: Image | None = image
        self._limits = limits
        self._geometry = geometry
        self._deadline_s = deadline_s
        self._backlog = backlog

    @property
    def is_wanted(self) -> bool:
        """Whether it has not been dropped."""
        return self._image is not None

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() >= self._deadline_s

    def drop(self) -> None:
        """Forget the image."""
        self._image = None

    def run(self) -> Preprocessed:
        """Decode the image and convert it to the geometry."""
        image = self._image
        if image is None:
            raise _Dropped
        return _preprocess(
            image, limits=self._limits, geometry=self._geometry, is_wanted=lambda: self.is_wanted
        )

    def finish(self, preprocessed: Preprocessed) -> None:
        """Answer, and note how long it took."""
        self._backlog.record_decode(preprocessed.duration_s)
        if not self.result.done():
            self.result.set_result(preprocessed)

    def fail(self, error: BaseException) -> None:
        """Fail with an error other than an image's."""
        if not self.result.done():
            self.result.set_exception(error)

    def expire(self) -> None:
        """Fail because the deadline has passed."""
        self.fail(DeadlineExceeded("the deadline passed before the images were decoded"))


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: no caller waits
        loop.call_soon_threadsafe(callback, *arguments)


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
    except MemoryError:
        raise OutOfMemory(
            "the server has too little memory to decode an image: try again, or send smaller ones"
        ) from None
