"""Calibration of logits with a known temperature."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from serving.bundle.measures import expected_calibration_error, fit_temperature
from training.evaluation.calibrate import calibrate, debiased_calibration_error


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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_optimum_of_scipy(temperature: float) -> None:
    """A general minimiser of the negative log likelihood finds no better temperature."""
    logits, labels = draw(temperature, images=2_000)

    def negative_log_likelihood(tried: float) -> float:
        return float(-log_softmax(logits / tried, axis=1)[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(negative_log_likelihood, bounds=(0.2, 10), method="bounded").x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-4)


def test_without_errors_confidence_is_not_raised() -> None:
    """A validation split without an error gives no evidence for more confidence."""
    labels = np.arange(50) % 2
    logits = np.where(np.eye(2)[labels] == 1, 2.0, 0.0)
    assert calibrate(logits, labels).temperature >= 1.0


def test_calibration_error_of_a_small_example() -> None:
    """Two bins: confidence 0.8, half correct; confidence 1.0, all correct. The error is half of 0.3."""
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.0, 1.0], [0.0, 1.0]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 1, 1])) == pytest.approx(0.15)


@pytest.mark.parametrize(("images", "labels"), [(76, 2), (76, 10), (2000, 4)])
def test_a_calibrated_network_has_almost_no_debiased_error(images: int, labels: int) -> None:
    """Labels drawn from the stated probabilities: on few images the plain error is far from 0."""
    random = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(40):
        probabilities = random.dirichlet(np.ones(labels), images)  # (N, K)
        truth = (probabilities.cumsum(axis=1) > random.random((images, 1))).argmax(axis=1)
        plain.append(expected_calibration_error(probabilities, truth))
        debiased.append(debiased_calibration_error(probabilities, truth))
    assert np.mean(debiased) < 0.35 * np.mean(plain)
    assert np.mean(np.array(debiased) > 0.1) < 0.05


def test_a_network_that_is_too_sure_keeps_its_error() -> None:
    """Sure of 0.95 and right for 0.7: chance explains next to nothing of the gap on 1,000 images."""
    confident = np.tile([0.95, 0.05], (1000, 1))
    truth = (np.arange(1000) % 10 >= 7).astype(np.int64)
    assert expected_calibration_error(confident, truth) == pytest.approx(0.25)
    assert debiased_calibration_error(confident, truth) == pytest.approx(0.25, abs=0.01)
