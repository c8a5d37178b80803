"""Estimates and their intervals against published values, scikit-learn, and their own promise."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from serving.bundle import Estimate
from serving.bundle.measures import wilson_interval
from training.evaluation.intervals import balanced_accuracy, mean_accuracy, roc_auc


def test_wilson_interval_of_a_textbook_case() -> None:
    """81 of 263 gives 0.2553 to 0.3662 (Newcombe 1998, table I)."""
    estimate = wilson_interval(81, 263)
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_always_holds_its_value(counts: tuple[int, int]) -> None:
    """0 <= low <= value <= high <= 1, also if no image or every image is correct."""
    estimate = wilson_interval(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_the_interval_of_a_mean_covers_other_networks_and_other_images() -> None:
    """Of 500 simulated studies 95 % hold the true mean; of intervals from the networks alone, half do."""
    random = np.random.default_rng(0)
    networks, images, mean, spread = 50, 76, 1.3, (0.2, 1.0)
    true = norm.cdf(mean / np.sqrt(1 + spread[0] ** 2 + spread[1] ** 2))
    covered, covered_by_networks = 0, 0
    for _ in range(500):
        strength = (
            mean + spread[0] * random.normal(size=(networks, 1)) + spread[1] * random.normal(size=images)
        )
        correct = strength + random.normal(size=(networks, images)) > 0  # (D, N)
        estimate = mean_accuracy(correct)
        assert estimate.value == pytest.approx(correct.mean())
        covered += estimate.low <= true <= estimate.high
        of_networks = 2.01 * correct.mean(axis=1).std(ddof=1) / np.sqrt(networks)  # Student's t
        covered_by_networks += abs(estimate.value - true) <= of_networks
    assert 0.92 <= covered / 500 <= 0.99
    assert covered_by_networks / 500 < 0.6


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_the_interval_of_a_mean_always_has_a_width_and_holds_its_value(
    correct: npt.NDArray[np.bool_],
) -> None:
    """Also if every network is right about every image, and with one network or one image."""
    estimate = mean_accuracy(correct)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high
    if len(correct) == 1:
        assert estimate == wilson_interval(int(correct.sum()), correct.size)


def test_area_under_the_curve_is_scikit_learn_s_and_its_interval_is_delong_s() -> None:
    """The value to the last digit, with ties; the interval within a tenth of its width."""
    random = np.random.default_rng(1)
    positive = random.random(400) < 0.3
    scores = np.round(random.normal(positive * 1.0, 1.0), 1)
    estimate = _auc(scores, positive)
    assert estimate.value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    ranks_of = [
        [np.mean((x > other) + 0.5 * (x == other)) for x in mine]
        for mine, other in ((scores[positive], scores[~positive]), (scores[~positive], scores[positive]))
    ]
    error = np.sqrt(sum(np.var(ranks, ddof=1) / len(ranks) for ranks in ranks_of))  # DeLong et al. 1988
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.4 * error)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.4 * error)


@pytest.mark.parametrize("grouped", [False, True])
def test_perfect_separation_is_not_certain(grouped: bool) -> None:  # noqa: FBT001 - a test's parameter
    """An AUC of 1 on 10 and 30 images has an interval below it; more images make it narrower."""
    widths = []
    for times in (1, 10):
        positive = np.repeat([True, False], [10 * times, 30 * times])
        groups = [f"patient {index // 2}" for index in range(len(positive))] if grouped else None
        estimate = roc_auc(positive * 1.0, positive, groups)
        assert estimate is not None
        assert estimate.value == estimate.high == 1
        widths.append(1 - estimate.low)
    assert 0.05 < widths[0] < 0.3
    assert 0 < widths[1] < widths[0] / 5


def test_a_ranking_that_is_always_wrong_is_not_certain_either() -> None:
    """The mirror image of perfect separation."""
    positive = np.repeat([True, False], [10, 30])
    wrong, right = _auc(~positive * 1.0, positive), _auc(positive * 1.0, positive)
    assert (wrong.value, wrong.low) == (0, 0)
    assert wrong.high == pytest.approx(1 - right.low, abs=0.03)


def test_one_image_of_a_label_still_has_an_interval() -> None:
    """No variance can be estimated from one image."""
    estimate = _auc(np.array([0.9, 0.1, 0.2, 0.3]), np.array([True, False, False, False]))
    assert estimate.low < estimate.value == 1


def test_images_of_one_patient_widen_the_interval() -> None:
    """Five copies of each image say no more than one of them: the interval stays as wide as it was."""
    random = np.random.default_rng(2)
    positive = random.random(60) < 0.5
    scores = random.normal(positive * 1.5, 1.0)
    alone = _auc(scores, positive)
    many_scores, many_positive = np.repeat(scores, 5), np.repeat(positive, 5)
    naive = _auc(many_scores, many_positive)
    grouped = roc_auc(many_scores, many_positive, [str(index // 5) for index in range(300)])
    assert grouped is not None
    assert naive.value == grouped.value == alone.value
    assert _width(naive) < 0.6 * _width(alone)
    assert _width(grouped) == pytest.approx(_width(alone), rel=0.25)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40),
    st.integers(1, 40),
)
def test_an_area_always_lies_within_an_interval_of_some_width(
    images: list[tuple[int, bool]], per_group: int
) -> None:
    """Whatever the scores, labels and groups."""
    scores, positive = np.array([each[0] for each in images]), np.array([each[1] for each in images])
    groups = [str(index // per_group) for index in range(len(images))]
    for estimate in (roc_auc(scores, positive), roc_auc(scores, positive, groups)):
        if estimate is not None:
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            assert estimate.low < estimate.high


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
    of_one_label = 1.96 * np.sqrt(0.75 * 0.25 / 40) / 2
    assert estimate.value - estimate.low > of_one_label  # the label that was always right is not certain
    assert balanced_accuracy(truth[:49], predicted[:49]) is None


def test_balanced_accuracy_of_no_mistakes_is_not_certain() -> None:
    """Ten of ten and ten of ten."""
    truth = np.repeat([0, 1], [10, 10])
    estimate = balanced_accuracy(truth, truth)
    assert estimate is not None
    assert 0.8 < estimate.low < estimate.value == estimate.high == 1


def _auc(scores: np.ndarray, positive: np.ndarray) -> Estimate:
    estimate = roc_auc(scores, positive)
    assert estimate is not None
    return estimate


def _width(estimate: Estimate) -> float:
    return estimate.high - estimate.low
