"""The tables and JSON objects that `recipes`, `layers`, `evaluate` and `verify` print."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from training.evaluation.gates import Check
from training.evaluation.scores import LabelScore
from training.recipe import Recipe
from training.recipe.measured import MeasuredResult
from training.recipe.results import is_current, result_lines


class LayerRow(Protocol):
    """A layer as it is shown. A protocol, since importing the class would import torch for `recipes` too."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def output(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def parameters(self) -> int: ...  # noqa: D102
    @property
    def frozen(self) -> int: ...  # noqa: D102
    @property
    def receptive_field(self) -> str: ...  # noqa: D102
    @property
    def arithmetic(self) -> str: ...  # noqa: D102


def describe_recipe(recipe: Recipe, measured: MeasuredResult | None) -> dict[str, Any]:
    """One recipe as a JSON object."""
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "stated": recipe.stated,
        "baseline": recipe.baseline,
        "tuned_on_test": recipe.tuned_on_test,
        "measured": None
        if measured is None
        else {**measured.model_dump(mode="json"), "current": is_current(recipe, measured)},
    }


def recipes_table(recipes: Sequence[Recipe], results: Mapping[str, MeasuredResult]) -> Table:
    """The recipes with their stated and measured results."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("recipe", "summary", "stated", "measured"):
        table.add_column(column, overflow="fold", no_wrap=column == "recipe")
    for recipe in recipes:
        shown = "\n".join(result_lines(recipe, results))
        table.add_row(recipe.name, recipe.summary, recipe.stated or "", escape(shown))
    return table


def layers_tree(recipe: Recipe, classes: int, layers: Sequence[LayerRow]) -> Group:
    """The layers of a network by full name, indented by depth."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "kind", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left", no_wrap=True)
    table.add_column("sees (pixels)")
    table.add_column("output height; parameters", overflow="fold")
    for layer in layers:
        frozen = f" (+ {layer.frozen:,} frozen)" if layer.frozen else ""
        table.add_row(
            "  " * layer.name.count(".") + layer.name,
            layer.kind,
            " x ".join(map(str, layer.output)),
            f"{layer.parameters:,}{frozen}" if layer.parameters or layer.frozen else "",
            layer.receptive_field,
            layer.arithmetic,
        )
    total = sum(layer.parameters for layer in layers if "." not in layer.name)
    height, width, channels = recipe.geometry.shape
    return Group(
        f"{recipe.network.name}: {total:,} parameters; images {height} x {width} x {channels}, "
        f"{classes} classes",
        table,
    )


def scores_table(labels: Sequence[LabelScore], metrics: Mapping[str, int | float]) -> Group:
    """An evaluation: one line of main scores, and one row per label."""
    headline = (
        f"test accuracy {metrics['accuracy']:.2%} on {metrics['images']:,} images "
        f"(95 % interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}), "
        f"calibration error {metrics['ece']:.4f}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("label", "precision", "recall", "F1", "images"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for entry in labels:
        table.add_row(
            escape(entry.label),
            f"{entry.precision:.2%}",
            f"{entry.recall:.2%}",
            f"{entry.f1:.4f}",
            f"{entry.images:,}",
        )
    return Group(headline, table)


def verification_table(checks: Sequence[Check], not_checked: Sequence[str], *, complete: bool) -> Group:
    """The checks of a bundle, what could not be checked, and whether the proof holds."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row("✓" if check.passed else "✗", escape(check.name), escape(check.detail))
    failed = sum(not check.passed for check in checks)
    verdict = f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
    verdict += "" if complete else "; the test split was not evaluated"
    return Group(table, *(escape(f"not checked: {line}") for line in not_checked), verdict)
