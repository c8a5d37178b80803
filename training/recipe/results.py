"""Measured results as text: lines for the list of recipes, and the Markdown table.

The recipe determines the scores. `method = "as-is"`: top-1 and top-5 accuracy. With `gates.min_auc`: AUC and
balanced accuracy. Otherwise: accuracy, and the validation accuracy if that split chose no epoch: it is then a
hold-out. A few-shot curve and the gain over the baseline follow if there are any.

Optimistic figures have a mark: those on test images that chose a setting, and those on validation images that
chose the epoch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from serving.bundle import Estimate
from training.recipe import Recipe, resolve
from training.recipe.measured import MeasuredResult

TUNED_ON_TEST = "†"
CHOSE_EPOCH = "‡"


def is_current(recipe: Recipe, measured: MeasuredResult) -> bool:
    """Whether the recipe is unchanged since the result was measured."""
    return measured.recipe_digest == recipe.digest()


def figures(recipe: Recipe, results: Mapping[str, MeasuredResult]) -> list[str]:
    """Return each score of a measured recipe with its 95 % interval: "accuracy 99.42% (99.25% to 99.55%)"."""
    measured = results[recipe.name]
    curve = (
        f"{point.examples()}: {point.mean:.1%} ({point.low:.1%} to {point.high:.1%}){_test_mark(recipe)}"
        for point in measured.few_shot
    )
    weights = [f"weights {measured.pretrained.file}"] if measured.pretrained else []
    return [*_estimates(recipe, measured), *_gains(recipe, results), *curve, *weights]


def result_lines(recipe: Recipe, results: Mapping[str, MeasuredResult]) -> list[str]:
    """Return a recipe's scores, size, duration and machine, one line each; empty if it was not measured."""
    measured = results.get(recipe.name)
    if measured is None:
        return []
    changed = [] if is_current(recipe, measured) else ["the recipe has changed since then"]
    scores = figures(recipe, results)
    marks = _footnotes([recipe], scores)
    return [
        *scores,
        *marks,
        f"{measured.images:,} test images, {measured.seconds:.0f} s",
        f"{measured.machine}, {measured.framework}, {measured.date}",
        *changed,
    ]


def markdown_table(recipes: Sequence[Recipe], results: Mapping[str, MeasuredResult]) -> str:
    """Return a Markdown table of the measured recipes."""
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
    for note in _footnotes([recipe for recipe in recipes if recipe.name in results], lines):
        lines += ["", note]
    return "\n".join(lines)


def _footnotes(recipes: Sequence[Recipe], lines: Sequence[str]) -> Iterator[str]:
    """Return the meaning of the marks in these lines."""
    text = "".join(lines)
    if TUNED_ON_TEST in text:
        yield f"{TUNED_ON_TEST} Optimistic, because test images chose " + "; ".join(
            recipe.tuned_on_test if len(recipes) == 1 else f"{recipe.tuned_on_test} (`{recipe.name}`)"
            for recipe in recipes
            if recipe.tuned_on_test
        )
    if CHOSE_EPOCH in text:
        yield f"{CHOSE_EPOCH} Optimistic, because validation images chose the epoch"


def _test_mark(*recipes: Recipe) -> str:
    return f" {TUNED_ON_TEST}" if any(recipe.tuned_on_test for recipe in recipes) else ""


def _estimates(recipe: Recipe, measured: MeasuredResult) -> Iterator[str]:
    # AUC is written as a fraction by convention, the others as percentages.
    mark = _test_mark(recipe)
    if recipe.method == "as-is":
        yield from _format_estimate("top-1", measured.accuracy, mark=mark)
        yield from _format_estimate("top-5", measured.top5, mark=mark)
    elif recipe.gates.min_auc:
        yield from _format_estimate("AUC", measured.auc, ".4f", mark)
        yield from _format_estimate("balanced accuracy", measured.balanced_accuracy, mark=mark)
    else:
        yield from _format_estimate("accuracy", measured.accuracy, mark=mark)
        if not recipe.validation_chose_epoch:
            yield from _format_estimate("hold-out accuracy", measured.validation)


def _gains(recipe: Recipe, results: Mapping[str, MeasuredResult]) -> Iterator[str]:
    own, baseline = results[recipe.name], results.get(recipe.baseline or "")
    if baseline is None:
        return
    both = recipe, resolve(recipe.baseline or "")
    chosen = f" {CHOSE_EPOCH}" if any(each.validation_chose_epoch for each in both) else ""
    splits = (
        ("test", own.accuracy, baseline.accuracy, _test_mark(*both)),
        ("validation", own.validation, baseline.validation, chosen),
    )
    for split, better, plain, mark in splits:
        if better is not None and plain is not None:
            gain, low, high = difference(better, plain)
            interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
            yield f"{100 * gain:+.1f} points ({interval}) over {recipe.baseline}'s {split} accuracy{mark}"


def difference(one: Estimate, other: Estimate) -> tuple[float, float, float]:
    """Return `one - other` with Newcombe's 95 % interval, from two Wilson intervals: (difference, low, high).

    The method assumes independent samples; for the same test images the interval is too wide. Newcombe 1998,
    method 10, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    gain = one.value - other.value
    low = gain - math.hypot(one.value - one.low, other.high - other.value)
    high = gain + math.hypot(one.high - one.value, other.value - other.low)
    return gain, low, high


def _format_estimate(
    name: str, estimate: Estimate | None, form: str = ".2%", mark: str = ""
) -> Iterator[str]:
    """Yields nothing if the score is missing."""
    if estimate is not None:
        yield f"{name} {estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}}){mark}"
