"""The table of `make bench-training`, as Markdown and as plain values. Measures nothing."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.cells import between, number, spread
from tests.benchmarks.training.race import GOAL, OURS, TUTORIAL, Run
from tests.benchmarks.training.speed import SHIPPED, Variant, Window

MOST_OF_TUTORIAL = 0.25  # of its time


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found; the runs and windows of one index are of one turn."""

    runs: Mapping[str, Sequence[Run]]
    windows: Mapping[Variant, Sequence[Window]]
    epoch_images: Mapping[str, int]  # by recipe
    circumstances: str


def markdown(measured: Measured) -> str:
    """One table, and below it under which circumstances it was made."""
    lines = [
        "| what | how | time, s | CPU time, s | images/s | time, to the reference |",
        "| --- | --- | --- | --- | --- | --- |",
        *_race_lines(measured.runs),
    ]
    for recipe in measured.epoch_images:
        lines += _speed_lines(recipe, measured)
    return "\n".join([*lines, "", measured.circumstances, ""])


def as_values(measured: Measured) -> dict[str, Any]:
    """The same for machines, every turn of it."""
    return {
        "goal": GOAL,
        "runs": {name: [asdict(run) for run in runs] for name, runs in measured.runs.items()},
        "windows": [
            asdict(variant) | {"turns": [asdict(window) for window in windows]}
            for variant, windows in measured.windows.items()
        ],
        "epoch_images": dict(measured.epoch_images),
        "circumstances": measured.circumstances,
    }


def _race_lines(runs: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    for name, own in runs.items():
        ratio = "1" if name == TUTORIAL else _verdict(runs[OURS], runs[TUTORIAL])
        yield _line(
            f"{100 * GOAL:.1f} % of MNIST's test images",
            f"{name}: {_accuracies(own)} after {statistics.median(run.images for run in own):,.0f} images",
            [run.wall_s for run in own],
            [run.cpu_s for run in own],
            [run.images / run.wall_s for run in own],
            ratio,
        )


def _verdict(ours: Sequence[Run], theirs: Sequence[Run]) -> str:
    ratios = [one.wall_s / other.wall_s for one, other in zip(ours, theirs, strict=True)]
    reached = all(run.reached for run in (*ours, *theirs))
    met = reached and statistics.median(ratios) <= MOST_OF_TUTORIAL
    text = f"**{number(statistics.median(ratios))}** [{between(ratios)}], <= {MOST_OF_TUTORIAL:g}: "
    if not reached:
        return f"{text}**the goal was not reached in every run**"
    return text + ("met" if met else "**not met**")


def _accuracies(runs: Sequence[Run]) -> str:
    values = [run.accuracy for run in runs]
    return f"{statistics.median(values):.2%} [{min(values):.2%}, {max(values):.2%}]"


def _speed_lines(recipe: str, measured: Measured) -> Iterator[str]:
    epoch_images = measured.epoch_images[recipe]
    own = {variant.name: windows for variant, windows in measured.windows.items() if variant.recipe == recipe}
    for name, windows in own.items():
        pairs = zip(windows, own[SHIPPED], strict=True)
        ratios = [_image_s(window) / _image_s(reference) for window, reference in pairs]
        yield _line(
            f"`{recipe}`, an epoch of {epoch_images:,} images",
            name,
            [_image_s(window) * epoch_images for window in windows],
            [window.cpu_s / window.images * epoch_images for window in windows],
            [1 / _image_s(window) for window in windows],
            "1" if name == SHIPPED else spread(ratios),
        )


def _image_s(window: Window) -> float:
    return window.wall_s / window.images


def _line(  # noqa: PLR0917 - the cells in their order
    what: str, how: str, wall: list[float], cpu: list[float], rate: list[float], ratio: str
) -> str:
    return f"| {what} | {how} | {spread(wall)} | {spread(cpu)} | {spread(rate)} | {ratio} |"
