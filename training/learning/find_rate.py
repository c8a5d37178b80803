"""Suggests a learning rate by a range test: the rate rises with every step until the loss diverges.

After Smith (2017, arXiv:1506.01186): a good rate is where the loss falls fastest, well below the rate at
which it diverges.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d, median_filter

from serving.errors import UsageError
from training.data import Dataset
from training.data.batches import Batches
from training.devices.out_of_memory import explaining_out_of_memory, training_advice
from training.devices.process_group import SINGLE_PROCESS
from training.errors import Diverged, TrainingError
from training.learning.learner import Learner
from training.networks import build
from training.recipe import Recipe
from training.run.display import Display
from training.run.interrupts import Interrupts

_PICTURES = (".png", ".svg", ".pdf", ".jpg", ".webp")

_SMOOTHING = 0.9  # of the moving average that sees the loss diverge
_DIVERGED = 4.0  # times the lowest average; the test ends there
_STEPS_BEFORE_DIVERGENCE = 0.1  # share of the steps: single batches decide nothing
_FEWEST_STEPS = 10
_OUTLIERS = 0.05  # share of the steps: width of the median that comes before
_SPREAD = 0.02  # share of the steps: standard deviation of the Gaussian that smooths the curve
_EDGE = 0.05  # share of the steps at either end where no slope is trusted
_CLEAR_FALL = (
    5.0  # standard errors of the smoothed curve; the lowest of 100 steps of noise is 2 to 3 below it
)
_NORMAL_MAD = 1.4826  # standard deviation over median absolute deviation, of normal noise


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
        TrainingError: no rate clearly lowers the loss, or it falls fastest at an end of the range.
        Interrupted: a signal stopped the run.
    """
    rates = [_rate(step, steps, lowest, highest) for step in range(steps)]
    with explaining_out_of_memory("training", device, training_advice(recipe, device)):
        losses = _run_range_test(recipe, dataset, device, display, interrupts, rates)
    return suggest_rate(rates[: len(losses)], losses, highest=highest)


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
    average = _MovingAverage(least_steps=max(_FEWEST_STEPS, round(_STEPS_BEFORE_DIVERGENCE * len(rates))))
    with display.training(len(rates), batches.batch_size):
        for step, rate in enumerate(rates):
            images, targets = batches.take(*divmod(step, batches.steps))
            result = learner.step(images, targets, rate=rate, steps=step + 1, batch=batches.batch_size)
            losses.append(float(result[0]))
            display.step_done(step + 1)
            interrupts.raise_if_stopped("a range test saves nothing")
            if not math.isfinite(losses[-1]) or average.diverges(losses[-1]):
                break
    return losses


class _MovingAverage:
    """An exponential moving average of the loss, corrected for its start as in Adam."""

    def __init__(self, least_steps: int) -> None:
        self._least_steps = least_steps
        self._steps = 0
        self._sum = 0.0
        self._first = self._lowest = math.inf

    def diverges(self, loss: float) -> bool:
        """Add a loss; whether the average is far above its lowest value, and above its first one."""
        self._steps += 1
        self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * loss
        average = self._sum / (1 - _SMOOTHING**self._steps)
        if self._steps <= self._least_steps:
            self._first = average
        self._lowest = min(self._lowest, average)
        return self._steps > self._least_steps and average > max(self._first, _DIVERGED * self._lowest)


def suggest_rate(
    rates: Sequence[float], losses: Sequence[float], *, highest: float | None = None
) -> RangeTest:
    """Find where the smoothed loss falls fastest over the logarithm of the rate.

    Args:
        rates: learning rates, rising geometrically.
        losses: the loss at each rate; the last ones may be NaN or infinite.
        highest: the rate at which the test was to end; None: the last of `rates`.

    Raises:
        Diverged: fewer than 10 losses are finite.
        TrainingError: no rate clearly lowers the loss, or it falls fastest at an end of the range.
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < _FEWEST_STEPS:
        raise Diverged(
            f"the loss became NaN or infinite at step {finite + 1}, at a learning rate of "
            f"{rates[finite]:.2g}; "
            f"{_FEWEST_STEPS} finite losses are needed: lower --lowest, now {rates[0]:.2g}"
        )
    smoothed = _smooth(np.array(losses[:finite]), len(rates))
    edge = max(2, round(_EDGE * finite))
    lowest = int(np.argmin(smoothed))
    if lowest <= edge:
        raise TrainingError(
            f"no learning rate from {rates[0]:.2g} to {rates[finite - 1]:.2g} lowers the loss, which starts "
            f"at {smoothed[0]:.4g}: lower --lowest, or raise --steps, now {len(rates)}"
        )
    fall = float(smoothed[: edge + 1].mean() - smoothed[lowest])
    error = _standard_error(losses[: lowest + 1], len(rates))
    if fall < _CLEAR_FALL * error:
        raise TrainingError(
            f"no learning rate from {rates[0]:.2g} to {rates[finite - 1]:.2g} clearly lowers the loss: it "
            f"falls by {fall:.2g}, with a standard error of {error:.2g}; raise training.batch_size, or "
            f"--steps, now {len(rates)}"
        )
    slopes = np.gradient(smoothed)[: lowest + 1]
    steepest = edge + int(np.argmin(slopes[edge:]))
    if steepest == edge:
        raise TrainingError(
            f"the loss falls fastest at {rates[edge]:.2g}, the start of the range: lower --lowest, now "
            f"{rates[0]:.2g}"
        )
    if steepest >= finite - edge and rates[finite - 1] >= (highest or rates[-1]):
        raise TrainingError(
            f"the loss still falls fastest at {rates[steepest]:.2g}, the end of the range: raise --highest, "
            f"now {rates[finite - 1]:.2g}"
        )
    return RangeTest(tuple(rates[:finite]), tuple(smoothed.tolist()), suggestion=rates[steepest])


def _smooth(losses: npt.NDArray[np.float64], steps: int) -> npt.NDArray[np.float64]:
    """The curve without outliers of single batches (median), then without noise (Gaussian): (N,) -> (N,)."""
    width = max(3, round(_OUTLIERS * steps))
    typical = median_filter(losses, width, mode="nearest")
    return np.asarray(gaussian_filter1d(typical, _width(steps), mode="nearest"))


def _standard_error(losses: Sequence[float], steps: int) -> float:
    """Of a point of the smoothed curve, from the differences of successive losses."""
    differences = np.abs(np.diff(losses)) / math.sqrt(2)
    noise = _NORMAL_MAD * float(np.median(differences))
    averaged = 2 * math.sqrt(math.pi) * _width(steps)  # losses that a Gaussian of this width averages
    return noise / math.sqrt(averaged)


def _width(steps: int) -> float:
    return max(1.0, _SPREAD * steps)


def check_picture(path: Path) -> None:
    """Check where the plot is to be written, before anything is trained.

    Raises:
        UsageError: the file's extension is not that of an image, or its directory cannot be written.
    """
    if path.suffix.lower() not in _PICTURES:
        raise UsageError(f"--picture {path} must end in {', '.join(_PICTURES)}: choose another --picture")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"--picture {path} cannot be written: choose a directory that exists and is yours")


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
