"""Warms a loaded network, and proves it by the golden examples of its bundle. Does no I/O."""

import numpy as np

from serving.bundle import Golden
from serving.engine.base import Engine, Floats
from serving.errors import ProofFailed


def warm_and_prove(engine: Engine, golden: Golden, *, tolerance: float, sizes: tuple[int, ...]) -> None:
    """Run every batch size once, then recompute the golden examples.

    Raises:
        ProofFailed: a probability is NaN or infinite, or differs by more than the tolerance. Within the
            tolerance, a label can change only if two golden probabilities differ by at most twice the
            tolerance.
        EngineError: the network failed.
    """
    for size in sizes:
        engine.run(np.resize(golden.images, (size, *golden.images.shape[1:])))  # (size, H, W, C), repeating
    largest = max(sizes)
    parts = [
        engine.run(golden.images[at : at + largest]).probabilities
        for at in range(0, len(golden.images), largest)
    ]
    _compare(np.concatenate(parts), golden, tolerance)


def _compare(probabilities: Floats, golden: Golden, tolerance: float) -> None:
    count = len(golden.images)
    if probabilities.shape != golden.probabilities.shape:
        raise ProofFailed(
            f"golden probabilities have shape {list(golden.probabilities.shape)}, "
            f"the network's have {list(probabilities.shape)}"
        )
    finite = int(np.isfinite(probabilities).all(axis=1).sum())
    if finite < count:
        raise ProofFailed(f"{count - finite} of {count} golden examples have NaN or infinite probabilities")
    difference = golden.largest_difference(probabilities)
    if not difference <= tolerance:
        raise ProofFailed(
            f"golden probabilities differ by {difference:.2g}, the tolerance is {tolerance:.2g}"
        )
