"""Scores against figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluate import score, wilson


def test_scores_by_hand() -> None:
    """Four images, one cat taken for a dog."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    scores = score(probabilities, np.array([0, 0, 1, 1]), ("cat", "dog"))
    assert scores.confusion == ((1, 1), (0, 2))
    assert (scores.evaluation.correct, scores.evaluation.images) == (3, 4)
    cat, dog = scores.labels
    assert (cat.precision, cat.recall, cat.images) == (1.0, 0.5, 2)
    assert (dog.precision, dog.recall) == (pytest.approx(2 / 3), 1.0)


def test_a_label_that_is_never_predicted_scores_zero() -> None:
    """No division by zero, and no warning."""
    scores = score(np.array([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]), np.array([0, 1]), ("a", "b", "c"))
    assert [entry.precision for entry in scores.labels] == [0.5, 0.0, 0.0]


def test_wilson_interval_of_a_textbook_case() -> None:
    """81 of 263 gives 0.2553 to 0.3662 (Newcombe 1998, table I)."""
    estimate = wilson(81, 263)
    assert (estimate.low, estimate.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_always_holds_its_value(counts: tuple[int, int]) -> None:
    """0 <= low <= value <= high <= 1, also where nothing or everything is right."""
    estimate = wilson(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
