"""Where a network's batches run: on the event loop, or in the engine's own thread. Measured at warm-up.

A thread lets requests be read and answered while the network runs, and costs two switches and a wake-up of
the event loop for every batch. A network that is cheaper than that is run where the requests are.
"""

import time
from dataclasses import dataclass

import numpy as np

from serving.bundle import Golden
from serving.engine import Engine

# The longest run of one image that pays on the event loop, and the longest run that may hold it up:
# measured in docs/performance.md.
_CHEAP_S = 0.25e-3
_HELD_S = 2e-3

_REPEATS = 5
_ENOUGH_S = 0.02  # a network that takes longer is measured once


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


def measure_cost(engine: Engine, golden: Golden, largest: int) -> RunCost:
    """Time an engine that is warm.

    Raises:
        EngineError: the network failed.
    """
    return RunCost(_fastest_s(engine, golden, 1), largest, _fastest_s(engine, golden, largest))


def images_on_loop(cost: RunCost) -> int:
    """The largest batch to run on the event loop; 0 where none is."""
    if cost.one_s > _CHEAP_S:
        return 0
    return max(size for size in range(1, cost.largest + 1) if cost.seconds(size) <= _HELD_S)


def _fastest_s(engine: Engine, golden: Golden, size: int) -> float:
    images = np.resize(golden.images, (size, *golden.images.shape[1:]))  # (size, H, W, C), repeating
    fastest_s = float("inf")
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
