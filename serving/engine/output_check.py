"""Refuses outputs that cannot be probabilities: NaN, infinite, or not summing to one."""

import sys
from collections.abc import Callable

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Floats, Output
from serving.errors import InvalidOutput

# FP16 has 11 bits of mantissa, so the sum of a thousand rounded probabilities is off by up to 0.005.
_TOLERANCE = 0.02
_LARGEST = sys.float_info.max


def checked(run: Callable[[Pixels], Output], *, expects_one: bool) -> Callable[[Pixels], Output]:
    """Return a function that runs a network as `run` does, and raises InvalidOutput for an invalid output.

    The requests of a batch that fails are run again, each alone.

    Args:
        run: runs the network on a batch.
        expects_one: whether the probabilities of an image sum to one; otherwise they must only be finite.
    """
    low, high = (1 - _TOLERANCE, 1 + _TOLERANCE) if expects_one else (-_LARGEST, _LARGEST)
    ones: Floats = np.ones(0, np.float32)  # (K,)

    def run_checked(images: Pixels) -> Output:
        # 0.4 us for one image of ten labels, 0.7 us for eight. Array operations would take 2.5 us.
        nonlocal ones
        output = run(images)
        probabilities = output.probabilities
        if not ones.size:
            ones = np.ones(probabilities.shape[1], np.float32)
        for total in probabilities.dot(ones).tolist():
            if not low <= total <= high:  # NaN fails
                raise _invalid(probabilities)
        return output

    return run_checked


def sums_to_one(probabilities: Floats) -> bool:
    """Whether each row sums to one: those of golden examples say what to expect of a network.

    Args:
        probabilities: (N, K).
    """
    return bool((np.abs(probabilities.sum(axis=1) - 1) <= _TOLERANCE).all())


def _invalid(probabilities: Floats) -> InvalidOutput:
    sums = probabilities.sum(axis=1)  # (N,)
    worst = float(sums[np.argmax(np.where(np.isfinite(sums), np.abs(sums - 1), np.inf))])
    what = f"sum to {worst:.4g}, not to 1" if np.isfinite(worst) else "are NaN or infinite"
    return InvalidOutput(f"the network failed: the probabilities of an image {what}")
