"""`lenserve batch` beside decoding and running alone, with SqueezeNet on small JPEG files, in one run.

python -m tests.benchmarks.batch_job [--images 20000] [--rounds 3]

"Alone" is a loop in one process per core that reads, decodes, resizes and runs batches of 32, and does
nothing else. Both are measured from start to end, less a run with a chunk per core, in which both load.
`ratio` compares images/s, and needs a quiet machine; `cpu_ratio` compares CPU seconds, of all processes.
"""

import argparse
import csv
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from serving.batch_job.reading import Reader
from serving.bundle import Bundle, ImageLimits, apply_geometry, decode_image
from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from tests.benchmarks.networks import FOLDER, backbone_bundle, photograph

NETWORK = "squeezenet1_1"
BATCH = 32
CHUNK_IMAGES = 128  # with fewer images per core, `lenserve batch` starts fewer processes
CPU = Device("cpu", 0, "benchmark")


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    bundle, cores = backbone_bundle(NETWORK), len(os.sched_getaffinity(0))
    with TemporaryDirectory(prefix="lenserve-batch-") as name:
        folder = Path(name)
        paths = write_copies(folder / "photos", options.images)
        few = paths[: CHUNK_IMAGES * cores]
        start = run_batch(bundle, few, folder / "start"), run_alone(bundle, few, cores)
        rounds = [
            compare(
                run_batch(bundle, paths, folder / f"out{number}") - start[0],
                run_alone(bundle, paths, cores) - start[1],
            )
            for number in range(options.rounds)
        ]
        median = {key: round(statistics.median(each[key] for each in rounds), 3) for key in rounds[0]}
        print(json.dumps({"images": options.images, "cores": cores, "median": median, "rounds": rounds}))


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall and CPU seconds of a run with all of its processes."""

    wall_s: float
    cpu_s: float

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


def compare(batch: Cost, alone: Cost) -> dict[str, float]:
    """How near `lenserve batch` comes to the loop: 1 is as fast."""
    return {
        "batch_s": round(batch.wall_s, 2),
        "alone_s": round(alone.wall_s, 2),
        "ratio": round(alone.wall_s / batch.wall_s, 3),
        "cpu_ratio": round(alone.cpu_s / batch.cpu_s, 3),
    }


@contextmanager
def clocked() -> Iterator[list[Cost]]:
    """Measure what the processes cost that start and end within."""
    costs: list[Cost] = []
    wall_s, cpu_s = time.perf_counter(), children_cpu_s()
    yield costs
    costs.append(Cost(time.perf_counter() - wall_s, children_cpu_s() - cpu_s))


def children_cpu_s() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_copies(folder: Path, count: int) -> list[str]:
    """Write copies of a 500x375 JPEG, each a file with other bytes at its end; return their paths."""
    folder.mkdir(parents=True)
    encoded = photograph()
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(encoded + number.to_bytes(4, "big"))
    return sorted(map(str, folder.iterdir()))


def run_batch(bundle: Bundle, paths: list[str], output: Path) -> Cost:
    """Run `lenserve batch`."""
    listed = output.with_suffix(".txt")
    listed.write_text("\n".join(paths))
    places = ["--repository", str(bundle.folder.parents[1]), "--output", str(output)]
    command = [sys.executable, "-m", "serving.cli", "batch", str(listed), "--model", bundle.model, *places]
    with clocked() as costs:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = sum(1 for part in output.glob("part-*") for _ in csv.DictReader(part.open(newline="")))
    if rows != len(paths):
        raise SystemExit(f"{rows} rows for {len(paths)} images: nothing to compare")
    return costs[0]


def run_alone(bundle: Bundle, paths: list[str], cores: int) -> Cost:
    """Read, decode and run all images in processes, one per core."""
    context = multiprocessing.get_context("spawn")
    with clocked() as costs:
        work = [
            context.Process(target=decode_and_run, args=(bundle, paths[core::cores])) for core in range(cores)
        ]
        for process in work:
            process.start()
        for process in work:
            process.join()
    return costs[0]


def decode_and_run(bundle: Bundle, paths: list[str]) -> None:
    """Load, and classify."""
    engine = OnnxEngine.load(bundle.model_file, CPU, threads=1, max_batch_size=BATCH)
    geometry, limits = bundle.manifest.geometry, ImageLimits()
    prepare = partial(apply_geometry, geometry=geometry)
    read = Reader().read
    for start in range(0, len(paths), BATCH):
        images = [prepare(decode_image(read(path), limits)) for path in paths[start : start + BATCH]]
        engine.run(np.stack(images))


if __name__ == "__main__":
    main()
