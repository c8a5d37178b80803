"""How a network runs best on this machine, measured when it is loaded: on how many threads, and where.

On a CPU two threads burn up to twice the CPU time of one for the same images, so they have to pay. The
engine's own thread lets requests be read and answered while the network runs, but costs two switches and a
wake-up of the event loop for every batch: a network that is cheaper than that runs on the event loop.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Device, Engine
from serving.engine.onnx import OnnxEngine

# A network that is quicker than this gains nothing from being split over threads.
_WORTH_SPLITTING_S = 2e-3
# Of the ideal: 2 threads have to be 1.6 times as fast as one.
_PAYING_SPEEDUP = 0.8

# The longest run of one image that pays on the event loop, and the longest run that may hold it up:
# measured in docs/performance.md.
_CHEAP_S = 0.25e-3
_HELD_S = 2e-3

_REPEATS = 5
_ENOUGH_S = 0.1  # a network that takes longer is measured once

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run takes."""

    one_s: float  # with one image
    largest: int
    largest_s: float  # with that many

    def seconds(self, images: int) -> float:
        """Of a run with so many images, on the line between the two."""
        if self.largest == 1:
            return self.one_s
        return self.one_s + (self.largest_s - self.one_s) * (images - 1) / (self.largest - 1)


def load_tuned(
    model_file: Path, device: Device, *, threads: int | None, cores: int, max_batch_size: int
) -> OnnxEngine:
    """Load a network on as many threads as are asked for, or else on as many as pay.

    Args:
        model_file: as in `OnnxEngine.load`.
        device: as in `OnnxEngine.load`.
        threads: None to choose between 1 and all cores.
        cores: that this process may use.
        max_batch_size: as in `OnnxEngine.load`.

    Raises:
        BundleError, DeviceUnavailable, EngineError: as `OnnxEngine.load` and `OnnxEngine.run`.
    """
    load = partial(OnnxEngine.load, model_file, device, max_batch_size=max_batch_size)
    engine = load(threads=1 if threads is None else threads)
    if threads is not None or device.kind != "cpu" or cores == 1:
        return engine
    image = np.zeros((1, *engine.image_shape), np.uint8)
    one_s = _fastest_s(engine, image)
    if one_s < _WORTH_SPLITTING_S:
        return engine
    split = load(threads=cores)
    speedup = one_s / _fastest_s(split, image)
    chosen = split if speedup >= _PAYING_SPEEDUP * cores else engine
    _log.info(
        "threads_chosen",
        extra={"file": str(model_file), "threads": chosen.threads, "speedup": f"{speedup:.2f}"},
    )
    return chosen


def measure_cost(engine: Engine, images: Pixels, largest: int) -> RunCost:
    """Time an engine that is warm.

    Args:
        engine: to be timed.
        images: (N, H, W, C) uint8, any N.
        largest: number of images of the largest batch.

    Raises:
        EngineError: the network failed.
    """
    one, many = (np.resize(images, (size, *images.shape[1:])) for size in (1, largest))  # repeating
    return RunCost(_fastest_s(engine, one), largest, _fastest_s(engine, many))


def images_on_loop(cost: RunCost) -> int:
    """The largest batch to run on the event loop; 0 where none is."""
    if cost.one_s > _CHEAP_S:
        return 0
    return max(size for size in range(1, cost.largest + 1) if cost.seconds(size) <= _HELD_S)


def in_thread(_: RunCost) -> int:
    """For networks that another process or a GPU runs: the event loop must not wait for it."""
    return 0


def choose_place(device: Device, *, remote: bool) -> Callable[[RunCost], int]:
    """Where batches run, by what a run costs. Looks at nothing but its arguments.

    Args:
        device: on CUDA, a run also waits while a graph of another network is captured.
        remote: whether another process runs them.
    """
    return images_on_loop if device.kind == "cpu" and not remote else in_thread


def _fastest_s(engine: Engine, images: Pixels) -> float:
    """Of a few runs: the others tell of the machine's other work."""
    fastest_s = math.inf
    spent_s = 0.0
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        engine.run(images)
        duration_s = time.perf_counter() - started_s
        fastest_s = min(fastest_s, duration_s)
        spent_s += duration_s
        if spent_s > _ENOUGH_S:
            break
    return fastest_s
