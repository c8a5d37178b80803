"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599), fitted on the validation split."""

import numpy as np

from serving.bundle import Calibration
from serving.bundle.measures import (
    Floats,
    Labels,
    confidence_bins,
    expected_calibration_error,
    fit_temperature,
    mean_gap,
    softmax,
)

_DRAWS = 400  # enough to know the mean to 1 % of its value on 76 images
_DRAWS_AT_ONCE = 20


def calibrate(logits: Floats, labels: Labels) -> Calibration:
    """Fit the temperature that minimises the negative log likelihood.

    Args:
        logits: (N, K) floating point, on the validation split.
        labels: (N,) int64, 0..K-1.

    Returns: the temperature, 0.2..10, and the calibration error before and after. If all images are
        classified correctly, the temperature is at least 1.
    """
    temperature = fit_temperature(logits, labels)
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(softmax(logits), labels),
        ece_after=expected_calibration_error(softmax(logits / temperature), labels),
    )


def uncalibrated(logits: Floats, labels: Labels) -> Calibration:
    """Return temperature 1 and its calibration error. Arguments as for `calibrate`."""
    error = expected_calibration_error(softmax(logits), labels)
    return Calibration(temperature=1.0, ece_before=error, ece_after=error)


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
    bins = confidence_bins(confidence)
    random = np.random.default_rng(0)
    by_chance = [
        mean_gap(confidence, bins, random.random((_DRAWS_AT_ONCE, len(labels))) < confidence).mean()
        for _ in range(_DRAWS // _DRAWS_AT_ONCE)
    ]
    return max(0.0, expected_calibration_error(probabilities, labels) - float(np.mean(by_chance)))
