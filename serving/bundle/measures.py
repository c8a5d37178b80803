"""The figures of a manifest from predictions: accuracy with its interval, calibration error, temperature.

numpy only, because training and `lenserve models import` both need them.
"""

import math

import numpy as np
import numpy.typing as npt

from serving.bundle.manifest import Estimate

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

ECE_BINS = 15
_Z_95 = 1.959963984540054  # standard normal, two-sided 95 %
_TEMPERATURE_BOUNDS = (0.2, 10.0)  # only a broken split leads outside these bounds
_HALVINGS = 40  # of the bounds' logarithms: the temperature to 1e-11 of its value


def wilson_interval(correct: int, images: int) -> Estimate:
    """Return `correct / images` with its 95 % interval (Wilson 1927), which is also valid near 0 and 1."""
    return wilson(correct / images, images)


def wilson(value: float, images: float) -> Estimate:
    """Return a fraction with Wilson's 95 % interval; `images` may be an effective number, not a whole one."""
    denominator = 1 + _Z_95**2 / images
    centre = (value + _Z_95**2 / (2 * images)) / denominator
    half_width = _Z_95 / denominator * math.sqrt(value * (1 - value) / images + _Z_95**2 / (4 * images**2))
    # Rounding must not move the bounds past the value, or outside 0..1.
    low, high = max(0.0, centre - half_width), min(1.0, centre + half_width)
    return Estimate(value=value, low=min(value, low), high=max(value, high))


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Expected calibration error (Naeini et al. 2015) over 15 bins of equal width.

    Args:
        probabilities: (N, K), each row summing to 1.
        labels: (N,) int64, 0..K-1.

    Returns: 0..1, the mean gap between confidence and accuracy, bins weighted by their images.
    """
    confidence = probabilities.max(axis=1)  # (N,)
    correct = probabilities.argmax(axis=1) == labels  # (N,)
    return float(mean_gap(confidence, confidence_bins(confidence), correct[np.newaxis])[0])


def confidence_bins(confidence: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence, (N,) -> (N,), 0..14. A bin includes its upper edge."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)  # (N,)


def mean_gap(confidence: Floats, bins: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_]) -> Floats:
    """Return the gap between confidence and accuracy for each row of `correct`, (draws, N) -> (draws,)."""
    gaps = np.zeros((len(correct), ECE_BINS))
    for number in np.unique(bins):
        members = bins == number  # (N,)
        gaps[:, number] = (correct[:, members] - confidence[members]).sum(axis=1)
    gap: Floats = np.abs(gaps).sum(axis=1) / len(confidence)
    return gap


def softmax(logits: Floats) -> Floats:
    """Return probabilities in the dtype of the logits: (N, K) -> (N, K), each row summing to 1."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, K)
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the temperature, 0.2..10, that minimises the negative log likelihood (Guo et al. 2017).

    The likelihood is concave in the inverse temperature, so its slope has one zero, found by halving.

    Args:
        logits: (N, K) floating point, on images that the network was not trained on.
        labels: (N,) int64, 0..K-1.

    Returns: if all images are classified correctly, at least 1.
    """
    wide = logits.astype(np.float64)
    of_truth = wide[np.arange(len(labels)), labels].mean()
    low, high = (math.log(bound) for bound in _TEMPERATURE_BOUNDS)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (softmax(wide / math.exp(middle)) * wide).sum(axis=1).mean()
        # Confident predictions expect more of their logits than the true labels have: they need a higher
        # temperature.
        low, high = (middle, high) if expected > of_truth else (low, middle)
    temperature = math.exp((low + high) / 2)
    # Without errors, the likelihood always rises with confidence: it gives no evidence for a temperature
    # below 1.
    all_correct = bool((logits.argmax(axis=1) == labels).all())
    return max(1.0, temperature) if all_correct else temperature
