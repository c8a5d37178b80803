"""Wall and CPU time of stretches of work on a device. Knows no training."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tests.benchmarks.processes import tree_cpu_s


class Stopwatch:
    """Adds up what ran under it: a class because stretches that are not counted lie between."""

    def __init__(self, device: torch.device) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0  # of this process and its workers, in the kernel's ticks of 10 ms
        self._device = device

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens in here, up to the last kernel on the device."""
        synchronise(self._device)
        wall_s, cpu_s = time.perf_counter(), tree_cpu_s(os.getpid())
        yield
        synchronise(self._device)
        self.wall_s += time.perf_counter() - wall_s
        self.cpu_s += tree_cpu_s(os.getpid()) - cpu_s


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
