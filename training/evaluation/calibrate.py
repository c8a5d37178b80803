"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599), fitted on the validation split."""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from serving.bundle import Calibration

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

ECE_BINS = 15
_TEMPERATURE_BOUNDS = (0.2, 10.0)  # outside lies no network, only a broken split


def calibrate(logits: Floats, labels: Labels) -> Calibration:
    """Find the temperature with the lowest negative log likelihood.

    Args:
        logits: (N, K) of the validation split.
        labels: (N,)
    """
    temperature = _fit_temperature(logits, labels)
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(softmax(logits, axis=1), labels),
        ece_after=expected_calibration_error(softmax(logits / temperature, axis=1), labels),
    )


def uncalibrated(logits: Floats, labels: Labels) -> Calibration:
    """Temperature 1, and the error that it leaves."""
    error = expected_calibration_error(softmax(logits, axis=1), labels)
    return Calibration(temperature=1.0, ece_before=error, ece_after=error)


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """How far confidence is from accuracy, over 15 equal-width bins of confidence weighted by their images.

    Args:
        probabilities: (N, K), each row summing to 1.
        labels: (N,)

    Returns: 0..1.
    """
    confidence = probabilities.max(axis=1)  # (N,)
    correct = probabilities.argmax(axis=1) == labels  # (N,)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)  # (N,)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _fit_temperature(logits: Floats, labels: Labels) -> float:
    wide = logits.astype(np.float64)

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = log_softmax(wide / math.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    bounds = tuple(math.log(temperature) for temperature in _TEMPERATURE_BOUNDS)
    found = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded")
    temperature = math.exp(found.x)
    # Where no validation image is wrong, the likelihood can only ask for more confidence, without end and
    # without evidence.
    all_correct = bool((logits.argmax(axis=1) == labels).all())
    return max(1.0, temperature) if all_correct else temperature
