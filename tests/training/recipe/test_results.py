"""Measured results as text."""

from datetime import date
from typing import Any

from serving.bundle.measures import wilson_interval
from training.few_shot.curve import CurvePoint
from training.recipe import Recipe, resolve, shipped_names
from training.recipe.measured import MeasuredResult
from training.recipe.results import difference, figures, markdown_table, result_lines
from training.terminal_tables import describe_recipe


def measured(recipe: Recipe, **others: Any) -> MeasuredResult:
    """A result of this recipe."""
    return MeasuredResult(
        recipe_digest=recipe.digest(),
        accuracy=wilson_interval(90, 100),
        images=1234,
        seconds=61.4,
        machine="a machine",
        framework="torch",
        date=date(2026, 1, 2),
        **others,
    )


def test_a_recipe_shows_the_scores_that_it_is_judged_by() -> None:
    """Accuracy and hold-out, AUC and balanced accuracy, top-1 and top-5, a curve: each with its interval."""
    all_of_them = {
        "balanced_accuracy": wilson_interval(80, 100),
        "auc": wilson_interval(95, 100),
        "top5": wilson_interval(98, 100),
        "validation": wilson_interval(70, 100),
    }
    accuracy, area = "90.00% (82.56% to 94.48%)", "0.9500 (0.8882 to 0.9785)"
    balanced, top5 = "80.00% (71.12% to 86.66%)", "98.00% (93.00% to 99.45%)"
    hold_out = "70.00% (60.42% to 78.11%)"
    for name, shown in (
        ("lenet5-mnist", [f"accuracy {accuracy}"]),
        ("cifar10-fast", [f"accuracy {accuracy}", f"hold-out accuracy {hold_out}"]),
        ("pneumonia-cnn", [f"AUC {area} †", f"balanced accuracy {balanced} †"]),
        ("pneumonia-transfer", [f"AUC {area} †", f"balanced accuracy {balanced} †"]),
        ("pneumoniamnist", [f"AUC {area} †", f"balanced accuracy {balanced} †"]),
        ("imagenet", [f"top-1 {accuracy}", f"top-5 {top5}"]),
    ):
        recipe = resolve(name)
        assert figures(recipe, {name: measured(recipe, **all_of_them)}) == shown
    recipe = resolve("few-shot")
    one = CurvePoint(per_label=1, draws=50, mean=0.6, low=0.55, high=0.65, worst=0.3, best=0.8)
    every = CurvePoint(per_label=None, draws=1, mean=0.9, low=0.8, high=0.95, worst=0.9, best=0.9)
    assert figures(recipe, {"few-shot": measured(recipe, few_shot=(one, every))}) == [
        f"accuracy {accuracy}",
        "1: 60.0% (55.0% to 65.0%)",
        "all: 90.0% (80.0% to 95.0%)",
    ]


def test_a_result_shows_machine_date_and_whether_the_recipe_has_changed() -> None:
    """Images, seconds, machine, framework, date; a changed recipe is marked, in the table too."""
    recipe = resolve("lenet5-mnist")
    current = measured(recipe)
    older = current.model_copy(update={"recipe_digest": "0" * 64})
    assert not result_lines(recipe, {})
    lines = result_lines(recipe, {"lenet5-mnist": current})
    assert lines[1:] == ["1,234 test images, 61 s", "a machine, torch, 2026-01-02"]
    assert result_lines(recipe, {"lenet5-mnist": older})[-1] == "the recipe has changed since then"
    row = "| `lenet5-mnist` | 99.0 % or more on the 10,000 test images | accuracy 90.00% (82.56% to 94.48%) "
    tail = "| 1,234 | 61 s | a machine, torch, 2026-01-02 |"
    recipes = [resolve("lenet5-digits"), recipe]
    assert markdown_table(recipes, {"lenet5-mnist": current}).splitlines()[2:] == [row + tail]
    assert "has changed" in markdown_table(recipes, {"lenet5-mnist": older})


def test_a_recipe_shows_its_gain_over_the_baseline() -> None:
    """On both splits, if both recipes were measured on them; every baseline is a shipped recipe."""
    recipe, plain = resolve("alexnet-bn-cifar10"), resolve("alexnet-cifar10")
    results = {recipe.name: measured(recipe, validation=wilson_interval(95, 100))}
    assert len(figures(recipe, results)) == 1
    results[plain.name] = measured(plain).model_copy(update={"accuracy": wilson_interval(80, 100)})
    gain = "+10.0 points (+0.0 to +19.9) over alexnet-cifar10's test accuracy"
    assert figures(recipe, results)[1:] == [gain]
    results[plain.name] = results[plain.name].model_copy(update={"validation": wilson_interval(80, 100)})
    assert figures(recipe, results)[1:] == [
        gain,
        "+15.0 points (+5.9 to +24.3) over alexnet-cifar10's validation accuracy ‡",
    ]
    baselines = {resolve(name).baseline for name in shipped_names()} - {None}
    assert baselines <= set(shipped_names())


def test_figures_on_images_that_chose_something_are_marked_and_explained() -> None:
    """Test images that chose a setting, and validation images that chose the epoch."""
    tuned, plain = resolve("conv2-mnist"), resolve("lenet5-mnist")
    assert tuned.tuned_on_test == "the learning rate"
    lines = result_lines(tuned, {tuned.name: measured(tuned)})
    assert lines[:2] == [
        "accuracy 90.00% (82.56% to 94.48%) †",
        "† Optimistic, because test images chose the learning rate",
    ]
    results = {recipe.name: measured(recipe) for recipe in (tuned, plain)}
    table = markdown_table([tuned, plain, resolve("pneumonia-cnn")], results)
    assert table.endswith("\n\n† Optimistic, because test images chose the learning rate (`conv2-mnist`)")
    assert table.count("†") == 2
    assert describe_recipe(tuned, None)["tuned_on_test"] == "the learning rate"

    better, base = resolve("alexnet-bn-cifar10"), resolve("alexnet-cifar10")
    validated = {each.name: measured(each, validation=wilson_interval(9, 10)) for each in (better, base)}
    assert result_lines(better, validated)[3] == ("‡ Optimistic, because validation images chose the epoch")


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """The example of Newcombe 1998: 56 of 70 against 48 of 80 is 20 points more, 5.24 to 33.39."""
    gain, low, high = difference(wilson_interval(56, 70), wilson_interval(48, 80))
    assert [round(each, 4) for each in (gain, low, high)] == [0.2, 0.0524, 0.3339]
