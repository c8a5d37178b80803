"""Scores against values calculated by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from training.evaluation.evaluate import balanced_accuracy, roc_auc, score, wilson_interval


def test_scores_by_hand() -> None:
    """Four images, one cat predicted as a dog."""
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
    estimate = wilson_interval(81, 263)
    assert (estimate.low, estimate.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_always_holds_its_value(counts: tuple[int, int]) -> None:
    """0 <= low <= value <= high <= 1, also if no image or every image is correct."""
    estimate = wilson_interval(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_area_under_the_curve_is_scikit_learn_s_and_its_interval_is_delong_s() -> None:
    """The value to the last digit, with ties; the interval within a tenth of its width."""
    random = np.random.default_rng(1)
    positive = random.random(400) < 0.3
    scores = np.round(random.normal(positive * 1.0, 1.0), 1)
    estimate = roc_auc(scores, positive)
    assert estimate is not None
    assert estimate.value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    ranks_of = [
        [np.mean((x > other) + 0.5 * (x == other)) for x in mine]
        for mine, other in ((scores[positive], scores[~positive]), (scores[~positive], scores[positive]))
    ]
    error = np.sqrt(sum(np.var(ranks, ddof=1) / len(ranks) for ranks in ranks_of))  # DeLong et al. 1988
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.4 * error)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.4 * error)


def test_area_under_the_curve_of_one_label_is_none() -> None:
    """There are no pairs to order."""
    assert roc_auc(np.array([0.1, 0.9]), np.array([True, True])) is None


def test_balanced_accuracy_is_the_mean_recall() -> None:
    """30 of 40 and 10 of 10 correct give 0.875; with fewer than ten images of a label there is no value."""
    truth = np.repeat([0, 1], [40, 10])
    predicted = np.repeat([0, 1], [30, 20])
    estimate = balanced_accuracy(truth, predicted)
    assert estimate is not None
    assert estimate.value == 0.875
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 40) / 2
    assert estimate.high - estimate.low == pytest.approx(2 * half_width, rel=0.1)
    assert balanced_accuracy(truth[:49], predicted[:49]) is None


def test_only_labels_that_occur_are_listed_of_many() -> None:
    """Of 1,000 labels only those that occur or are predicted have a row; top-5 accuracy covers all."""
    probabilities = np.full((2, 1000), 1e-4)
    probabilities[:, [3, 5, 7, 8, 9, 11]] = [0.3, 0.2, 0.1, 0.09, 0.08, 0.07]
    scores = score(probabilities, np.array([9, 11]), [f"label {index}" for index in range(1000)])
    assert [entry.label for entry in scores.labels] == ["label 3", "label 9", "label 11"]
    assert scores.confusion == ((0, 0, 0), (1, 0, 0), (1, 0, 0))
    assert scores.top5 is not None
    assert scores.top5.value == 0.5
