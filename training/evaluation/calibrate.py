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
_DRAWS = 400  # enough to know the mean to 1 % of its value on 76 images
_DRAWS_AT_ONCE = 20
_TEMPERATURE_BOUNDS = (0.2, 10.0)  # only a broken split leads outside these bounds


def calibrate(logits: Floats, labels: Labels) -> Calibration:
    """Fit the temperature that minimises the negative log likelihood.

    Args:
        logits: (N, K) floating point, on the validation split.
        labels: (N,) int64, 0..K-1.

    Returns: the temperature, 0.2..10, and the calibration error before and after. If all images are
        classified correctly, the temperature is at least 1.
    """
    temperature = _fit_temperature(logits, labels)
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(softmax(logits, axis=1), labels),
        ece_after=expected_calibration_error(softmax(logits / temperature, axis=1), labels),
    )


def uncalibrated(logits: Floats, labels: Labels) -> Calibration:
    """Return temperature 1 and its calibration error. Arguments as for `calibrate`."""
    error = expected_calibration_error(softmax(logits, axis=1), labels)
    return Calibration(temperature=1.0, ece_before=error, ece_after=error)


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Expected calibration error (Naeini et al. 2015) over 15 bins of equal width.

    Args:
        probabilities: (N, K), each row summing to 1.
        labels: (N,) int64, 0..K-1.

    Returns: 0..1, the mean gap between confidence and accuracy, bins weighted by their images.
    """
    confidence = probabilities.max(axis=1)  # (N,)
    correct = probabilities.argmax(axis=1) == labels  # (N,)
    return float(_mean_gap(confidence, _bins(confidence), correct[np.newaxis])[0])


def debiased_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Expected calibration error in excess of chance.

    A perfectly calibrated network has an ECE above 0 on any finite set: the fewer images, the larger. Its
    expectation is subtracted: the mean ECE of resampled labels, where each prediction is correct with its
    stated probability (consistency resampling: Broecker and Smith 2007; Vaicenavicius et al. 2019).

    Args:
        probabilities: (N, K), each row summing to 1.
        labels: (N,) int64, 0..K-1.

    Returns: 0..1
    """
    confidence = probabilities.max(axis=1)  # (N,)
    bins = _bins(confidence)
    random = np.random.default_rng(0)
    by_chance = [
        _mean_gap(confidence, bins, random.random((_DRAWS_AT_ONCE, len(labels))) < confidence).mean()
        for _ in range(_DRAWS // _DRAWS_AT_ONCE)
    ]
    return max(0.0, expected_calibration_error(probabilities, labels) - float(np.mean(by_chance)))


def _bins(confidence: Floats) -> npt.NDArray[np.int64]:
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)  # (N,)


def _mean_gap(confidence: Floats, bins: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_]) -> Floats:
    """Return the gap between confidence and accuracy for each row of `correct`, (draws, N) -> (draws,)."""
    gaps = np.zeros((len(correct), ECE_BINS))
    for number in np.unique(bins):
        members = bins == number  # (N,)
        gaps[:, number] = (correct[:, members] - confidence[members]).sum(axis=1)
    gap: Floats = np.abs(gaps).sum(axis=1) / len(confidence)
    return gap


def _fit_temperature(logits: Floats, labels: Labels) -> float:
    wide = logits.astype(np.float64)

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = log_softmax(wide / math.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    bounds = tuple(math.log(temperature) for temperature in _TEMPERATURE_BOUNDS)
    found = minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded")
    temperature = math.exp(found.x)
    # Without errors on the validation split, the likelihood always rises with confidence: it gives no
    # evidence for a temperature below 1.
    all_correct = bool((logits.argmax(axis=1) == labels).all())
    return max(1.0, temperature) if all_correct else temperature
