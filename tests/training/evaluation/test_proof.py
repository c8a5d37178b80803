"""The floors that every network must reach, and what a failed one says."""

import numpy as np
import pytest

from training.evaluation.evaluate import score
from training.evaluation.proof import _floors
from training.evaluation.scores import Scores
from training.recipe import GateRecipe

LABELS = ("ants", "bees", "wasps")
IMAGES = (60, 28, 12)  # of each label in the test split


@pytest.mark.parametrize(("correct", "passed"), [((60, 2, 1), False), ((60, 4, 1), True)])
def test_a_network_must_beat_the_most_frequent_label(correct: tuple[int, int, int], passed: bool) -> None:  # noqa: FBT001
    """60 of 100 test images are ants: always saying so is right for 0.6, and the floor is 0.64."""
    floor, recall = _floors(_scores(correct), GateRecipe())
    assert (floor.passed, recall.passed) == (passed, True)
    assert floor.name == "better than always 'ants' (0.6)"
    assert floor.detail == f"{sum(correct) / 100:.4g}, minimum 0.64 (gates.min_skill)"


def test_a_network_at_chance_fails_and_a_setting_lets_it_pass() -> None:
    """Always the most frequent label: neither better than that, nor right for any other."""
    checks = list(_floors(_scores((60, 0, 0)), GateRecipe()))
    assert [check.passed for check in checks] == [False, False]
    assert checks[1].detail == "never: 'bees', 'wasps' (gates.allow_zero_recall)"
    (check,) = _floors(_scores((60, 0, 0)), GateRecipe(min_skill=0, allow_zero_recall=True))
    assert check.passed


def test_a_label_with_few_test_images_may_have_no_recall() -> None:
    """Nine images that are all wrong may be chance."""
    truth = np.repeat([0, 1], [91, 9])
    scores = score(np.eye(2)[np.zeros(100, np.int64)], truth, ("ants", "bees"))
    assert [check.passed for check in _floors(scores, GateRecipe(min_skill=0))] == [True, True]


def test_many_missed_labels_are_named_in_part() -> None:
    """A line of a thousand names helps nobody."""
    truth = np.repeat(np.arange(20), 10)
    scores = score(np.eye(20)[np.zeros(200, np.int64)], truth, [f"label {index}" for index in range(20)])
    *_, recall = _floors(scores, GateRecipe())
    assert recall.detail.startswith("never: 'label 1', 'label 2', 'label 3', 'label 4', 'label 5', ... (")


def _scores(correct: tuple[int, int, int]) -> Scores:
    """Of 60, 28 and 12 test images so many are correct; the others are called by the next label."""
    truth = np.repeat(np.arange(3), IMAGES)
    predicted = np.concatenate(
        [
            np.where(np.arange(n) < c, k, (k + 1) % 3 if k == 0 else 0)
            for k, (n, c) in enumerate(zip(IMAGES, correct, strict=True))
        ]
    )
    return score(np.eye(3)[predicted], truth, LABELS)
