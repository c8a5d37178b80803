"""Scores against values calculated by hand."""

import numpy as np
import pytest

from training.evaluation.evaluate import score


def test_scores_of_a_small_example() -> None:
    """Four images, one cat predicted as a dog."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    scores = score(probabilities, np.array([0, 0, 1, 1]), ("cat", "dog"))
    assert scores.confusion == ((1, 1), (0, 2))
    assert (scores.evaluation.correct, scores.evaluation.images) == (3, 4)
    cat, dog = scores.labels
    assert (cat.precision, cat.recall, cat.images) == (1.0, 0.5, 2)
    assert dog.precision == pytest.approx(2 / 3)
    assert dog.recall == 1.0


def test_a_label_that_is_never_predicted_scores_zero() -> None:
    """No division by zero, and no warning."""
    scores = score(np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]), np.array([0, 1]), ("a", "b", "c"))
    assert [entry.precision for entry in scores.labels] == [0.5, 0.0, 0.0]


def test_proper_scores_of_a_small_example() -> None:
    """Two images: the negative log likelihood in nats, and Brier's score over all labels."""
    scores = score(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0]), ("cat", "dog"))
    assert scores.negative_log_likelihood == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert scores.brier == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)


def test_a_certain_mistake_has_a_finite_likelihood() -> None:
    """float32 softmax gives exact zeros; metrics.json has no place for infinity."""
    scores = score(np.array([[1.0, 0.0]], np.float32), np.array([1]), ("cat", "dog"))
    assert scores.negative_log_likelihood is not None
    assert 80 < scores.negative_log_likelihood < 100


def test_only_labels_that_occur_are_listed_of_many() -> None:
    """Of 1,000 labels only those that occur or are predicted have a row; top-5 accuracy covers all."""
    probabilities = np.full((2, 1000), 1e-4)
    probabilities[:, [3, 5, 7, 8, 9, 11]] = [0.3, 0.2, 0.1, 0.09, 0.08, 0.07]
    scores = score(probabilities, np.array([9, 11]), [f"label {index}" for index in range(1000)])
    assert [entry.label for entry in scores.labels] == ["label 3", "label 9", "label 11"]
    assert scores.confusion == ((0, 0, 0), (1, 0, 0), (1, 0, 0))
    assert scores.top5 is not None
    assert scores.top5.value == 0.5
