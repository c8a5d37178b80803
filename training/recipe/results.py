"""Measured results in words: beside each recipe for people, and as the README's table.

Which figures are shown follows from the recipe: of `method = "as-is"` top-1 and top-5; where a gate asks for
an area under the ROC curve, that area and the balanced accuracy; else the accuracy, and beside it that of the
validation split where the last weights are kept (`training.keep = "last"`): then it chose nothing and is a
hold-out. A curve over few examples is shown where there is one; what a recipe gained on its baseline, where
it names one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from serving.bundle import Estimate
from training.recipe import Recipe
from training.recipe.measured import MeasuredResult


def is_current(recipe: Recipe, measured: MeasuredResult) -> bool:
    """Whether the recipe is still as it was when it was run."""
    return measured.recipe_digest == recipe.digest()


def figures(recipe: Recipe, results: Mapping[str, MeasuredResult]) -> list[str]:
    """Each figure of a measured recipe with its 95 % interval: "accuracy 99.42% (99.25% to 99.55%)"."""
    measured = results[recipe.name]
    curve = (
        f"{point.examples()}: {point.mean:.1%} ({point.low:.1%} to {point.high:.1%})"
        for point in measured.few_shot
    )
    weights = [f"weights {measured.pretrained.file}"] if measured.pretrained else []
    return [*_estimates(recipe, measured), *_gains(recipe, results), *curve, *weights]


def result_lines(recipe: Recipe, results: Mapping[str, MeasuredResult]) -> list[str]:
    """All that is known of a recipe's result; nothing where there is none."""
    measured = results.get(recipe.name)
    if measured is None:
        return []
    changed = [] if is_current(recipe, measured) else ["the recipe has changed since then"]
    return [
        *figures(recipe, results),
        f"{measured.images:,} test images, {measured.seconds:.0f} s",
        f"{measured.machine}, {measured.framework}, {measured.date}",
        *changed,
    ]


def markdown_table(recipes: Sequence[Recipe], results: Mapping[str, MeasuredResult]) -> str:
    """The measured recipes as a table in Markdown."""
    lines = [
        "| recipe | stated | measured (95 % interval) | test images | whole run | machine |",
        "|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        result = results.get(recipe.name)
        if result is None:
            continue
        changed = "" if is_current(recipe, result) else "; the recipe has changed since then"
        cells = (
            f"`{recipe.name}`",
            recipe.stated or "",
            "<br>".join(figures(recipe, results)),
            f"{result.images:,}",
            f"{result.seconds:.0f} s",
            f"{result.machine}, {result.framework}, {result.date}{changed}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _estimates(recipe: Recipe, measured: MeasuredResult) -> Iterator[str]:
    # AUC is a fraction by custom, the others are shares of images.
    if recipe.method == "as-is":
        yield from _format_estimate("top-1", measured.accuracy)
        yield from _format_estimate("top-5", measured.top5)
    elif recipe.gates.min_auc:
        yield from _format_estimate("AUC", measured.auc, ".4f")
        yield from _format_estimate("balanced accuracy", measured.balanced_accuracy)
    else:
        yield from _format_estimate("accuracy", measured.accuracy)
        if recipe.training.keep == "last":
            yield from _format_estimate("hold-out accuracy", measured.validation)


def _gains(recipe: Recipe, results: Mapping[str, MeasuredResult]) -> Iterator[str]:
    own, baseline = results[recipe.name], results.get(recipe.baseline or "")
    if baseline is None:
        return
    splits = (
        ("test", own.accuracy, baseline.accuracy),
        ("validation", own.validation, baseline.validation),
    )
    for split, better, plain in splits:
        if better is not None and plain is not None:
            gain, low, high = difference(better, plain)
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            yield f"{100 * gain:+.1f} points ({interval}) over {recipe.baseline}'s {split} accuracy"


def difference(one: Estimate, other: Estimate) -> tuple[float, float, float]:
    """How much more the first fraction is, with its 95 % interval: Newcombe's, of two Wilson intervals.

    Made for two samples; of the same images it is wider than it must be. Newcombe 1998, method 10,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    gain = one.value - other.value
    low = gain - math.hypot(one.value - one.low, other.high - other.value)
    high = gain + math.hypot(one.high - one.value, other.value - other.low)
    return gain, low, high


def _format_estimate(name: str, estimate: Estimate | None, form: str = ".2%") -> Iterator[str]:
    """Nothing where the evaluation has no such figure."""
    if estimate is not None:
        yield f"{name} {estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
