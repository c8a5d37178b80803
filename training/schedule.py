"""The learning rate as a pure function of the step, so that a resumed run needs no memory of it."""

import math

from training.recipe import TrainingRecipe


def learning_rate(step: int, total_steps: int, recipe: TrainingRecipe) -> float:
    """The rate of one step.

    Args:
        step: 0..total_steps - 1, counted over all epochs.
        total_steps: what the run takes where early stopping does not end it.
        recipe: its schedule and highest rate.
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
