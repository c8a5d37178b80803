"""The learning rate as a pure function of the step, so that a resumed run needs no schedule state."""

import math

from training.recipe import TrainingRecipe

_RISE = 0.3  # one-cycle: fraction of steps with rising rate (Smith and Topin 2017, arXiv:1708.07120)
_START, _END = 1 / 25, 1 / 10_000  # one-cycle: first and last rate, relative to the highest


def learning_rate(step: int, total_steps: int, recipe: TrainingRecipe) -> float:
    """Compute the learning rate of one step.

    Args:
        step: 0..total_steps - 1, over all epochs.
        total_steps: number of steps without early stopping.
        recipe: the schedule and its highest rate.
    """
    warmup_steps = recipe.warmup_epochs * total_steps / recipe.epochs
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    return recipe.learning_rate * warm * _share(step, total_steps, recipe)


def _share(step: int, total_steps: int, recipe: TrainingRecipe) -> float:
    """Rate relative to the highest one, without warm-up."""
    done = step / total_steps  # 0..1
    if recipe.schedule == "cosine":
        return _half_cosine(done)
    if recipe.schedule == "linear":
        return 1 - done
    if recipe.schedule == "one-cycle":
        if done < _RISE:
            return _START + (1 - _START) * _half_cosine(1 - done / _RISE)
        return _END + (1 - _END) * _half_cosine((done - _RISE) / (1 - _RISE))
    if recipe.schedule == "step":
        return float(recipe.step_factor ** (step * recipe.epochs // total_steps // recipe.step_epochs))
    return 1.0


def _half_cosine(done: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * done))
