"""Advice on runs that cannot give a good network."""

import pytest

from serving.bundle import Estimate, Evaluation
from training.data import DataReport
from training.evaluation.scores import LabelScore, Scores
from training.recipe import Recipe, resolve
from training.run.hints import learned_nothing, too_few_photographs


def report(ants: int) -> DataReport:
    """Training images of ants, and 5,000 of bees."""
    counts = {"train": {"ants": ants, "bees": 5_000}, "test": {"ants": 25, "bees": 24}}
    return DataReport(counts=counts, undecodable={}, ignored_files=0, repeated={}, removed={}, conflicts=())


def scores(low: float) -> Scores:
    """Scores of two labels; the interval of the balanced accuracy begins at `low`."""
    estimate = Estimate(value=low + 0.1, low=low, high=low + 0.2)
    label = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "images": 25}
    return Scores(
        evaluation=Evaluation(images=50, correct=round(50 * estimate.value), accuracy=estimate, ece=0.1),
        labels=(LabelScore(label="ants", **label), LabelScore(label="bees", **label)),
        confusion=((13, 12), (12, 13)),
        balanced_accuracy=estimate,
        auc=None,
        top5=None,
    )


@pytest.mark.parametrize(
    ("recipe", "ants", "hinted"),
    [
        (resolve("lenet5-folder"), 123, True),
        (resolve("lenet5-folder"), 1_000, False),
        (resolve("lenet5-folder", ["geometry.channels=1"]), 123, False),
        (resolve("transfer"), 123, False),
        (resolve("lenet5-mnist"), 123, False),
    ],
)
def test_scratch_on_few_photographs_hints_at_transfer(
    recipe: Recipe,
    ants: int,
    hinted: bool,  # noqa: FBT001
) -> None:
    """Only without pretrained weights, on colour images of a folder, and with fewer than 1,000 of a label."""
    hint = too_few_photographs(recipe, report(ants))
    assert (hint is not None) == hinted
    assert ("123 training images of ants are few" in (hint or "")) == hinted
    assert ("run transfer" in (hint or "")) == hinted


@pytest.mark.parametrize(("low", "hinted"), [(0.45, True), (0.5, True), (0.55, False)])
def test_a_network_at_chance_is_named(low: float, hinted: bool) -> None:  # noqa: FBT001
    """At chance the interval of the balanced accuracy includes 0.5."""
    hint = learned_nothing(resolve("lenet5-folder"), scores(low))
    assert (hint is not None) == hinted
    assert ("run transfer" in (hint or "")) == hinted
    assert hinted == ("report" in (learned_nothing(resolve("transfer"), scores(low)) or ""))
