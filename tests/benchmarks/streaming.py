"""How fast batches in random order come from a disk: read as training does it, and through a mapping.

`python -m tests.benchmarks.streaming [FOLDER]`: the file lies in the folder, and its disk is measured.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from training.data.storage.disk_images import DiskImages

BATCH, BATCHES, ROUNDS = 64, 40, 3
SIDES = {224: 16_000, 64: 64_000}  # pixels -> images: 2.2 and 0.7 GiB
MIB = 2**20

Gather = Callable[[np.ndarray], np.ndarray]


def write(path: Path, shape: tuple[int, ...]) -> None:
    """Noise, on the disk when this returns."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, *shape[1:]), dtype=np.uint8)
    with path.open("wb") as file:
        for _ in range(shape[0] // len(noise)):
            file.write(noise.data)
        file.flush()
        os.fsync(file.fileno())


def measure_mib_per_s(path: Path, shape: tuple[int, ...], gather: Gather, *, is_cached: bool) -> float:
    """Gather batches of rows, none of which the kernel has in its cache, or all."""
    with path.open("rb") as file:
        advice = os.POSIX_FADV_WILLNEED if is_cached else os.POSIX_FADV_DONTNEED
        os.posix_fadvise(file.fileno(), 0, 0, advice)
        if is_cached:
            while file.read(MIB):
                pass
    order = np.random.default_rng(0).permutation(shape[0])[: BATCH * BATCHES].reshape(BATCHES, BATCH)
    began_s = time.perf_counter()
    taken_bytes = sum(gather(rows).nbytes for rows in order)
    return taken_bytes / MIB / (time.perf_counter() - began_s)


def mapped(path: Path, shape: tuple[int, ...]) -> Gather:
    """Rows of an array that is mapped afresh."""
    array = np.memmap(path, np.uint8, "r", shape=shape)
    return lambda rows: array[rows]


def main(folder: str | None) -> None:
    """Print one line for each size."""
    print("| images of | disk, mapping | disk, read | cached, mapping | cached, read |")
    for side, count in SIDES.items():
        shape = (count, side, side, 3)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "images"
            write(path, shape)
            cells = []
            for is_cached in (False, True):
                found = [
                    [
                        measure_mib_per_s(path, shape, gather, is_cached=is_cached)
                        for gather in (mapped(path, shape), DiskImages(path, 0, shape).__getitem__)
                    ]
                    for _ in range(ROUNDS)
                ]  # (rounds, ways)
                cells += [
                    f"{np.median(some):,.0f} [{min(some):,.0f}, {max(some):,.0f}]"
                    for some in zip(*found, strict=True)
                ]
        print(f"| {side} x {side} x 3 | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
