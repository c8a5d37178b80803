"""Statistics of pairs, against other implementations of the same definitions."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from training.champion.paired import Pair, effective, images_if_equal, lowest_difference, p_worse, pair_of


def test_only_images_that_one_alone_gets_right_count() -> None:
    """Both right and both wrong say nothing."""
    challenger = np.array([True, True, False, False, True])
    champion = np.array([True, False, True, False, False])
    assert pair_of(challenger, champion) == Pair(gained=2, lost=1, images=5)
    assert Pair(2, 1, 5).difference == pytest.approx(0.2)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 5), (5, 0), (7, 19), (40, 41), (300, 400)])
def test_the_p_value_is_that_of_an_exact_binomial_test(gained: int, lost: int) -> None:
    """McNemar's exact test is one of a fair coin."""
    total = gained + lost
    expected = binomtest(gained, total, 0.5, alternative="less").pvalue if total else 1.0
    assert p_worse(Pair(gained, lost, 1000)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("gained", "lost", "images"), [(10, 5, 100), (30, 50, 1000), (0, 3, 40), (4, 0, 40)])
def test_the_interval_ends_where_the_score_statistic_is_that_of_95_percent(
    gained: int, lost: int, images: int
) -> None:
    """The statistic with the variance at the constrained maximum of the likelihood, found numerically."""
    difference = lowest_difference(Pair(gained, lost, images))
    others = images - gained - lost

    def minus_log_likelihood(share: float) -> float:  # of images that the champion alone gets right
        terms = ((gained, share + difference), (lost, share), (others, 1 - 2 * share - difference))
        return -sum(count * math.log(value) for count, value in terms if count)

    bounds = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    share = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = images * (2 * share + difference - difference**2)
    score = (gained - lost - images * difference) / math.sqrt(variance)
    assert score == pytest.approx(1.6448536, abs=1e-3)
    assert difference < Pair(gained, lost, images).difference


def test_agreement_on_every_image_is_no_proof_beyond_their_number() -> None:
    """1,000 images leave 0.27 points open, 100 images 2.6."""
    assert lowest_difference(Pair(0, 0, 1000)) == pytest.approx(-0.0027, abs=1e-4)
    assert lowest_difference(Pair(0, 0, 100)) == pytest.approx(-0.0263, abs=1e-4)
    assert lowest_difference(Pair(0, 0, 0)) == -1


@pytest.mark.parametrize("margin", [0.005, 0.015, 0.1])
def test_so_many_equal_answers_prove_that_less_than_the_margin_is_lost(margin: float) -> None:
    """And one image fewer does not."""
    needed = math.ceil(images_if_equal(margin))
    assert lowest_difference(Pair(0, 0, needed - 1)) < -margin <= lowest_difference(Pair(0, 0, needed))


def test_the_interval_covers_as_often_as_it_says() -> None:
    """95 % of one-sided intervals are below the true difference, over many simulated pairs."""
    random = np.random.default_rng(0)
    gained, lost, images = 0.05, 0.06, 400
    drawn = random.multinomial(images, [gained, lost, 1 - gained - lost], 3000)
    covered = np.mean([lowest_difference(Pair(b, c, images)) <= gained - lost for b, c, _ in drawn])
    assert 0.94 < covered < 0.965


def test_images_of_one_patient_count_less() -> None:
    """Ten images that always agree are one: the design effect is ten. Independent ones keep their number."""
    random = np.random.default_rng(0)
    one_each = random.random(200) < 0.5
    challenger, champion = np.repeat(one_each, 10), np.repeat(~one_each, 10)
    patients = [f"patient-{number // 10}" for number in range(2000)]
    pair = pair_of(challenger, champion)
    grouped = effective(pair, challenger, champion, patients)
    assert pair.images / grouped.images == pytest.approx(10, rel=0.02)
    assert grouped.difference == pytest.approx(pair.difference)
    assert effective(pair, challenger, champion, None) == pair
    alone = effective(pair, challenger, champion, [str(number) for number in range(2000)])
    assert alone.images == pytest.approx(2000, rel=0.01)
    assert effective(pair, challenger, champion, ["one"] * 2000) == pair
