"""Measures, when a network is loaded, with how many threads it runs best, and whether on the event loop.

On a CPU, two threads use up to twice the CPU time of one for the same images, so they must be worth it. While
the engine's thread runs a batch, the event loop can read and answer requests, but each batch costs two thread
switches and a wake-up of the loop. A network that is cheaper than that runs on the event loop.
"""

import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine

# A faster network gains nothing from more threads.
_WORTH_SPLITTING_S = 2e-3
# Minimum parallel efficiency: 2 threads must be 1.6 times as fast as one.
_MIN_EFFICIENCY = 0.8

# The longest run of one image that is worth running on the event loop, and the longest run that may block it:
# measured in docs/performance.md.
_CHEAP_S = 0.25e-3
_MAX_BLOCKED_S = 2e-3

_REPEATS = 5
_ENOUGH_S = 0.1  # a slower network is measured once

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunCost:
    """Duration of a run with one image and with the largest batch."""

    one_s: float
    largest: int
    largest_s: float

    def seconds(self, images: int) -> float:
        """Return the duration of a run with this number of images, interpolated."""
        if self.largest == 1:
            return self.one_s
        return self.one_s + (self.largest_s - self.one_s) * (images - 1) / (self.largest - 1)


def load_tuned(
    model_file: Path, device: Device, *, threads: int | None, cores: int, max_batch_size: int
) -> OnnxEngine:
    """Load a network; choose its number of threads and its largest batch on the event loop.

    On CUDA nothing is measured: the event loop must not wait for the GPU or for the capture of a graph.

    Args:
        model_file: an ONNX file.
        device: as in `OnnxEngine.load`.
        threads: threads per run; None chooses between 1 and all cores.
        cores: number of cores that this process may use.
        max_batch_size: as in `OnnxEngine.load`.

    Raises:
        BundleError, DeviceUnavailable, EngineError: as `OnnxEngine.load` and `OnnxEngine.run`.
    """
    load = partial(OnnxEngine.load, model_file, device, max_batch_size=max_batch_size)
    engine = load(threads=1 if threads is None else threads)
    if device.kind != "cpu":
        return engine
    one_s = fastest_run_s(engine, 1)
    if threads is None and cores > 1 and one_s >= _WORTH_SPLITTING_S:
        split = load(threads=cores)
        split_s = fastest_run_s(split, 1)
        speedup = one_s / split_s
        if speedup >= _MIN_EFFICIENCY * cores:
            engine, one_s = split, split_s
        fields = {"file": str(model_file), "threads": engine.threads, "speedup": f"{speedup:.2f}"}
        _log.info("threads_chosen", extra=fields)
    if one_s <= _CHEAP_S:
        cost = RunCost(one_s, max_batch_size, fastest_run_s(engine, max_batch_size))
        engine.max_images_on_loop = images_on_loop(cost)
    return engine


def images_on_loop(cost: RunCost) -> int:
    """Return the largest batch to run on the event loop; 0: all batches run in a thread."""
    if cost.one_s > _CHEAP_S:
        return 0
    return max(size for size in range(1, cost.largest + 1) if cost.seconds(size) <= _MAX_BLOCKED_S)


def fastest_run_s(engine: OnnxEngine, images: int) -> float:
    """Return the duration of the fastest of a few runs: slower ones also measure other processes.

    Raises:
        EngineError: the network failed.
    """
    batch = np.zeros((images, *engine.image_shape), np.uint8)  # (B, H, W, C)
    fastest_s = math.inf
    spent_s = 0.0
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        engine.run(batch)
        duration_s = time.perf_counter() - started_s
        fastest_s = min(fastest_s, duration_s)
        spent_s += duration_s
        if spent_s > _ENOUGH_S:
            break
    return fastest_s
