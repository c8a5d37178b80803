"""How long the exported file takes on this machine, in ONNX Runtime on the CPU."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.bundle.images import Pixels
from training.evaluation.onnx_session import open_session
from training.report.blocks import Table

_BATCHES = (1, 32)
_MOST_RUNS = 50
_FEWEST_RUNS = 3
_BUDGET_S = 0.4  # for each batch size


@dataclass(frozen=True, slots=True)
class Latency:
    """Timed runs of one batch size."""

    batch: int
    runs: int
    median_s: float
    slowest_s: float


def measure_latency(model_file: Path, images: Pixels) -> list[Latency]:
    """Time batches of these images, (N, H, W, C) uint8, one after the other."""
    session = open_session(model_file)
    found = []
    for batch in _BATCHES:
        feed = {"image": np.resize(images, (batch, *images.shape[1:]))}
        session.run(["probabilities"], feed)  # allocates memory
        times: list[float] = []
        while len(times) < _FEWEST_RUNS or (len(times) < _MOST_RUNS and sum(times) < _BUDGET_S):
            began_s = time.perf_counter()
            session.run(["probabilities"], feed)
            times.append(time.perf_counter() - began_s)
        found.append(Latency(batch, len(times), float(np.median(times)), max(times)))
    return found


def latency_table(latencies: list[Latency], machine: str) -> Table:
    """Time for each batch size, and images per second."""
    return Table(
        "Latency on this machine",
        ("batch", "median", "slowest", "runs", "images/s"),
        tuple(
            (
                f"{each.batch}",
                _time(each.median_s),
                _time(each.slowest_s),
                f"{each.runs}",
                f"{each.batch / each.median_s:,.0f}",
            )
            for each in latencies
        ),
        frozenset(),
        caption=f"{machine}: the network alone, in ONNX Runtime on the CPU. Decoding and resizing of images, "
        "and the way to a client, are not included.",
    )


def _time(seconds: float) -> str:
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:,.0f} ms"  # noqa: PLR2004
