"""Fakes of `Engine`: an echo, and a real network behind a gate."""

import threading
import time
from collections.abc import Collection

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Device, Output
from serving.engine.onnx import OnnxEngine
from serving.errors import EngineError

CPU = Device("cpu", 0, "tests")


class FakeEngine:
    """A fake of `Engine`: returns the first sample of each image, and records its runs."""

    max_images_on_loop = 0

    def __init__(self, *, poison: Collection[int] = ()) -> None:
        self.gate = threading.Event()  # closed (cleared): runs wait
        self.gate.set()
        self.entered = threading.Event()
        self.runs: list[list[int]] = []  # first samples of the images, run by run
        self._poison = frozenset(poison)  # a batch with one of these fails

    def run(self, images: Pixels) -> Output:
        """Return (N, 1) float32 with the first sample of each image."""
        samples = images[:, 0, 0, 0]  # (N,)
        self.runs.append(samples.tolist())
        self.entered.set()
        assert self.gate.wait(timeout=30)
        if not self._poison.isdisjoint(samples.tolist()):
            raise EngineError(f"a batch of {len(images)} is poisoned")
        echo = samples[:, np.newaxis].astype(np.float32)  # (N, 1)
        return Output(echo, -echo)


class GatedEngine:
    """A real network behind a gate, for tests of what happens while it runs. A fake of `Engine`."""

    max_images_on_loop = 0  # the gate must not block the event loop

    def __init__(self, engine: OnnxEngine, *, image_s: float = 0.0) -> None:
        """Wrap a network; each image takes image_s longer, without CPU."""
        self._engine = engine
        self._image_s = image_s
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: Exception | None = None
        self.runs: list[int] = []  # how many images, run by run

    def close(self) -> None:
        """Make the next run wait, and forget earlier runs."""
        self.gate.clear()
        self.entered.clear()
        self.runs.clear()

    def run(self, images: Pixels) -> Output:
        """Wait for the gate, then run, or raise `error`."""
        self.runs.append(len(images))
        self.entered.set()
        assert self.gate.wait(timeout=30)
        time.sleep(self._image_s * len(images))
        if self.error is not None:
            raise self.error
        return self._engine.run(images)
