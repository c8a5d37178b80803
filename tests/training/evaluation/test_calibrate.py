"""Calibration on logits whose truth is known."""

import numpy as np
import pytest
from scipy.special import softmax

from training.evaluation.calibrate import calibrate, expected_calibration_error


def draw(temperature: float, images: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too confident by a known factor, with labels drawn from the honest probabilities."""
    random = np.random.default_rng(0)
    honest = random.normal(0, 2, (images, 5))
    probabilities = softmax(honest, axis=1)
    labels = (probabilities.cumsum(axis=1) < random.random((images, 1))).sum(axis=1)
    return honest * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_right_temperature_is_found(temperature: float) -> None:
    """Logits made too bold or too timid by a factor are brought back by it, and the error falls."""
    calibration = calibrate(*draw(temperature))
    assert calibration.temperature == pytest.approx(temperature, rel=0.05)
    assert calibration.ece_after < 0.02
    assert calibration.ece_after <= calibration.ece_before + 1e-3


def test_without_mistakes_confidence_is_not_raised() -> None:
    """A validation split that is all right gives no reason for more confidence."""
    labels = np.arange(50) % 2
    logits = np.where(np.eye(2)[labels] == 1, 2.0, 0.0)
    assert calibrate(logits, labels).temperature >= 1.0


def test_calibration_error_by_hand() -> None:
    """Two bins, 0.8 sure and half right, 1.0 sure and all right: the error is half of 0.3."""
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.0, 1.0], [0.0, 1.0]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.15)
