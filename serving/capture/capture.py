"""Captures served images: chosen on the event loop, written by a thread. Never delays or fails a request.

The queue of the thread is bounded; what does not fit is dropped and counted. If the folder cannot be written,
such as on a full disk, capture stops, logs one line, and tries again later.
"""

import asyncio
import io
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from queue import Empty, SimpleQueue
from random import random as uniform
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from serving.bundle.images import FORMATS, Pixels
from serving.capture.choice import Answer, CapturePolicy, choose
from serving.capture.folder import CapturedImage, CaptureFolder
from serving.errors import UsageError
from serving.metrics.recorder import Metrics

RETRY_S = 60.0  # pause after a failure
_EXPIRE_S = 60.0  # interval of looking for images that are too old
_STOP_TIMEOUT_S = 5.0  # a disk that hangs must not delay the exit
_MAX_QUEUED_BYTES = 64 * 2**20
_MAX_REMEMBERED = 10_000  # digests of recent images

# Pillow's formats -> extensions, which training recognizes. MPO: JPEGs of phones with a second picture.
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "PPM": ".ppm",
}

_log = logging.getLogger(__name__)

SentImage = bytes | memoryview | Pixels  # an encoded file, or pixels (H, W) or (H, W, C)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An image on its way to the thread."""

    image: bytes | Pixels
    size_bytes: int
    model: str
    version: int
    labels: Sequence[str]
    answer: Answer


class Capture:
    """Captures images of all models. `async with` starts and stops its thread."""

    def __init__(
        self,
        folder: CaptureFolder,
        policy: CapturePolicy,
        metrics: Metrics,
        *,
        random: Callable[[], float] = uniform,
        retry_s: float = RETRY_S,
        max_queued_bytes: int = _MAX_QUEUED_BYTES,
    ) -> None:
        """Store the options.

        Args:
            folder: where images go. Only the thread uses it.
            policy: which images are captured.
            metrics: metrics of the server.
            random: returns numbers of [0, 1).
            retry_s: pause after a failure to write.
            max_queued_bytes: images that wait for the thread; more are dropped.
        """
        self._folder = folder
        self._policy = policy
        self._metrics = metrics
        self._random = random
        self._retry_s = retry_s
        self._max_queued_bytes = max_queued_bytes
        self._queue: SimpleQueue[_Chosen | None] = SimpleQueue()
        # Only the event loop changes the first, and only the thread the second: together they need no lock.
        self._queued_bytes = 0
        self._taken_bytes = 0
        self._is_open = False
        self._retry_at_s = -math.inf  # after a failure; on the clock of time.monotonic()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        metrics.capture_bytes.labels().set_function(lambda: folder.size_bytes)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def offer(
        self,
        images: Sequence[SentImage] | Pixels,
        probabilities: npt.NDArray[np.float32],
        *,
        model: str,
        version: int,
        labels: Sequence[str],
    ) -> None:
        """Capture some of the images of a request. Called on the event loop.

        Args:
            images: N of them, as the client sent them.
            probabilities: (N, K).
            model: name of the model that answered.
            version: the version that answered.
            labels: K labels.
        """
        try:
            self._queue_chosen(images, probabilities, model, version, labels)
        except Exception as error:  # noqa: BLE001 - capture never fails a request
            _log.error("image_not_captured", extra={"model": model, "reason": str(error)}, exc_info=error)

    def _queue_chosen(
        self,
        images: Sequence[SentImage] | Pixels,
        probabilities: npt.NDArray[np.float32],
        model: str,
        version: int,
        labels: Sequence[str],
    ) -> None:
        for row, answer in choose(probabilities, self._policy, self._random):
            sent = images[row]
            size_bytes = sent.nbytes if isinstance(sent, np.ndarray) else len(sent)
            waiting_bytes = self._queued_bytes - self._taken_bytes
            if waiting_bytes + size_bytes > self._max_queued_bytes or self._is_paused:
                self._count(model, version, "dropped")
                continue
            # Copied where the client, or the rest of its request, owns the memory.
            image = np.array(sent) if isinstance(sent, np.ndarray) else bytes(sent)
            self._queued_bytes += size_bytes
            self._queue.put(_Chosen(image, size_bytes, model, version, labels, answer))

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._retry_at_s

    def _work(self) -> None:
        """Write until the server stops. Called in the thread."""
        self._attempt(self._open)
        while True:
            try:
                chosen = self._queue.get(timeout=_EXPIRE_S)
            except Empty:
                with suppress(OSError):  # the next image reports it
                    self._folder.expire(time.time())
                continue
            if chosen is None:
                break
            self._taken_bytes += chosen.size_bytes
            if self._is_paused or not self._attempt(partial(self._write, chosen)):
                self._count(chosen.model, chosen.version, "failed")
        self._folder.close()

    def _open(self) -> None:
        if not self._is_open:
            self._folder.open()
            self._is_open = True

    def _write(self, chosen: _Chosen) -> None:
        self._open()
        self._count(chosen.model, chosen.version, self._write_new(chosen))

    def _write_new(self, chosen: _Chosen) -> str:
        """Write an image unless it was captured lately; return the outcome."""
        try:
            encoded, suffix = _encoded(chosen.image)
        except Exception as error:  # noqa: BLE001 - Pillow's parsers raise many kinds of errors
            _log.warning("image_not_captured", extra={"model": chosen.model, "reason": str(error)})
            return "failed"
        digest = blake2b(encoded, digest_size=16, key=chosen.model.encode()[:64]).digest()
        if digest in self._seen:
            return "duplicate"
        now_s = time.time()
        self._folder.expire(now_s)
        if not self._folder.add(_captured(chosen, encoded, suffix), now_s):
            return "dropped"
        self._seen[digest] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return "written"

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Do something with the folder; if that fails, stop for a while, and return False."""
        was_stopped = math.isfinite(self._retry_at_s)
        try:
            work()
        except Exception as error:  # noqa: BLE001 - capture never ends the server
            self._retry_at_s = time.monotonic() + self._retry_s
            self._metrics.capture_stopped.labels().set(1)
            if not was_stopped:
                fields = {"reason": str(error), "retry_s": self._retry_s}
                _log.error("capture_stopped", extra=fields, exc_info=not isinstance(error, OSError))
            return False
        if was_stopped:
            self._retry_at_s = -math.inf
            self._metrics.capture_stopped.labels().set(0)
            _log.info("capture_resumed")
        return True

    def _count(self, model: str, version: int, outcome: str) -> None:
        self._metrics.captured_images.labels(model, str(version), outcome).value += 1


def check_capture_folder(folder: Path) -> None:
    """Create the folder, or check that it is one.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--capture-dir {folder} cannot be used: {error.strerror}; set another directory"
        ) from error


def _encoded(image: bytes | Pixels) -> tuple[bytes, str]:
    """Return the file of an image and its extension: the bytes that were sent, or pixels as PNG."""
    if isinstance(image, bytes):
        with PillowImage.open(io.BytesIO(image), formats=FORMATS) as opened:
            return image, _SUFFIXES[opened.format or ""]
    file = io.BytesIO()
    PillowImage.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image).save(file, "PNG")
    return file.getvalue(), ".png"


def _captured(chosen: _Chosen, encoded: bytes, suffix: str) -> CapturedImage:
    answer, labels = chosen.answer, chosen.labels
    return CapturedImage(
        encoded,
        suffix,
        chosen.model,
        chosen.version,
        labels[answer.index],
        answer.index,
        answer.confidence,
        labels[answer.second],
        answer.margin,
    )
