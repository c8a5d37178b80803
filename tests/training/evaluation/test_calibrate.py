"""Calibration of logits with a known temperature."""

import numpy as np
import pytest
from scipy.special import softmax

from training.evaluation.calibrate import calibrate, expected_calibration_error


def draw(temperature: float, images: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits scaled by a known factor, with labels drawn from the calibrated probabilities."""
    random = np.random.default_rng(0)
    calibrated = random.normal(0, 2, (images, 5))
    probabilities = softmax(calibrated, axis=1)
    labels = (probabilities.cumsum(axis=1) < random.random((images, 1))).sum(axis=1)
    return calibrated * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_right_temperature_is_found(temperature: float) -> None:
    """The factor of overconfident or underconfident logits is recovered, and the error falls."""
    calibration = calibrate(*draw(temperature))
    assert calibration.temperature == pytest.approx(temperature, rel=0.05)
    assert calibration.ece_after < 0.02
    assert calibration.ece_after <= calibration.ece_before + 1e-3


def test_without_errors_confidence_is_not_raised() -> None:
    """A validation split without an error gives no evidence for more confidence."""
    labels = np.arange(50) % 2
    logits = np.where(np.eye(2)[labels] == 1, 2.0, 0.0)
    assert calibrate(logits, labels).temperature >= 1.0


def test_calibration_error_by_hand() -> None:
    """Two bins: confidence 0.8, half correct; confidence 1.0, all correct. The error is half of 0.3."""
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.0, 1.0], [0.0, 1.0]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.15)
