"""Suggests a learning rate by a range test: the rate rises with every step until the loss diverges.

After Smith (2017, arXiv:1506.01186): a good rate is where the loss falls fastest, well below the rate at
which it diverges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from training.data import Dataset
from training.data.batches import Batches
from training.devices.out_of_memory import explaining_out_of_memory, training_advice
from training.devices.process_group import SINGLE_PROCESS
from training.errors import Diverged
from training.learning.learner import Learner
from training.networks import build
from training.recipe import Recipe
from training.run.display import Display
from training.run.interrupts import Interrupts

_SMOOTHING = 0.9  # of the loss's moving average
_DIVERGED = 3.0  # times the lowest loss; the test ends there
_FEWEST_STEPS = 10


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The result of a learning-rate range test."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # smoothed
    suggestion: float  # where the loss falls fastest


def find_rate(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    display: Display,
    interrupts: Interrupts,
    *,
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
) -> RangeTest:
    """Train a new network while the rate rises geometrically, until the loss diverges.

    Args:
        recipe: the recipe to find a rate for.
        dataset: its data; the training split alone is used.
        device: where to train.
        display: shows progress.
        interrupts: checked after every step.
        lowest: first learning rate.
        highest: last learning rate.
        steps: number of rates, at least 2.

    Raises:
        OutOfMemory: the GPU or the machine is out of memory.
        Diverged: the loss was NaN or infinite within the first 10 steps.
        Interrupted: a signal stopped the run.
    """
    rates = [_rate(step, steps, lowest, highest) for step in range(steps)]
    with explaining_out_of_memory("training", device, training_advice(recipe, device)):
        losses = _run_range_test(recipe, dataset, device, display, interrupts, rates)
    return suggest_rate(rates[: len(losses)], losses)


def _run_range_test(  # noqa: PLR0917 - the arguments of `find_rate`
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    display: Display,
    interrupts: Interrupts,
    rates: Sequence[float],
) -> list[float]:
    """Return the loss at each rate, up to the one at which it diverges."""
    torch.manual_seed(recipe.training.seed)
    batches = Batches(recipe, dataset.train, len(dataset.labels), device, SINGLE_PROCESS)
    network = build(recipe.network, recipe.geometry, len(dataset.labels))
    learner = Learner(recipe, network, batches.images, batches.labels, SINGLE_PROCESS)
    losses: list[float] = []
    with display.training(len(rates), batches.batch_size):
        for step, rate in enumerate(rates):
            images, targets = batches.take(*divmod(step, batches.steps))
            loss = learner.step(images, targets, rate=rate, steps=step + 1, batch=batches.batch_size)
            losses.append(float(loss))
            display.step_done(step + 1)
            interrupts.raise_if_stopped("a range test saves nothing")
            if not math.isfinite(losses[-1]) or losses[-1] > _DIVERGED * min(losses):
                break
    return losses


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Find where the smoothed loss falls fastest over the logarithm of the rate.

    Args:
        rates: learning rates, rising geometrically.
        losses: the loss at each rate; the last ones may be NaN or infinite.

    Raises:
        Diverged: fewer than 10 losses are finite.
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < _FEWEST_STEPS:
        raise Diverged(
            f"the loss became NaN or infinite after {finite} steps, at a learning rate of "
            f"{rates[finite - 1]:.2g}: at least {_FEWEST_STEPS} finite losses are needed"
        )
    smoothed, average = [], 0.0
    for step, loss in enumerate(losses[:finite], start=1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**step))  # bias-corrected, as in Adam
    lowest = int(np.argmin(smoothed))
    falls = np.gradient(np.array(smoothed))[: max(1, lowest)]
    return RangeTest(tuple(rates[:finite]), tuple(smoothed), suggestion=rates[int(np.argmin(falls))])


def draw_range_test(result: RangeTest, current: float) -> Figure:
    """Plot loss over learning rate, with the suggestion and the recipe's current rate marked."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, color="#1f4e8c")
    axes.axvline(
        result.suggestion, color="#2a9d5c", linestyle=":", label=f"steepest: {result.suggestion:.2g}"
    )
    axes.axvline(current, color="#c0752d", linestyle="--", label=f"the recipe's: {current:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    axes.set_ylim(top=min(max(result.losses), 1.2 * max(result.losses[:_FEWEST_STEPS])))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _rate(step: int, steps: int, lowest: float, highest: float) -> float:
    return float(lowest * (highest / lowest) ** (step / (steps - 1)))
