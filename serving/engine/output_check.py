"""Refuses outputs that cannot be probabilities: NaN, infinite, or not summing to one."""

import sys
from collections.abc import Callable

import numpy as np

from serving.bundle.images import Pixels
from serving.engine.base import Floats, Output
from serving.errors import InvalidOutput

# The sum of a batch of N images may differ from N by this much: FP16 has 11 bits of mantissa, so that the sum
# of a thousand rounded probabilities is off by up to 0.005. Errors of many images average out.
_TOLERANCE = 0.02
_TOLERANCE_PER_IMAGE = 0.001


def checked(run: Callable[[Pixels], Output], *, expects_one: bool) -> Callable[[Pixels], Output]:
    """Return a function that runs a network as `run` does, and raises InvalidOutput for an invalid output.

    It checks the sum of each batch: one dot product. A batch whose errors cancel each other passes; the
    requests of one that fails are run again, each alone.

    Args:
        run: runs the network on a batch.
        expects_one: whether the probabilities of an image sum to one; otherwise they must only be finite.
    """
    ones: Floats = np.ones(0, np.float32)

    def run_checked(images: Pixels) -> Output:
        # About 0.6 us for one image of ten labels.
        nonlocal ones
        output = run(images)
        probabilities = output.probabilities.ravel()
        size = probabilities.size
        if size > ones.size:
            ones = np.ones(size, np.float32)
        count = len(images)
        excess = probabilities.dot(ones[:size]).item() - count
        limit = _TOLERANCE + count * _TOLERANCE_PER_IMAGE if expects_one else sys.float_info.max
        if not -limit <= excess <= limit:  # NaN fails
            raise _invalid(output.probabilities)
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
