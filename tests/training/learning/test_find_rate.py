"""The range test finds where the loss falls fastest, and stops when it diverges."""

import math
import signal
from collections.abc import Callable

import pytest
import torch

from training.data import load
from training.errors import Diverged, Interrupted
from training.learning.find_rate import draw_range_test, find_rate, suggest_rate
from training.recipe import Recipe
from training.run.display import Display
from training.run.interrupts import Interrupts


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    """A synthetic curve: flat, falling around step 60, diverging after 80."""
    rates = [10 ** (-5 + step / 20) for step in range(100)]
    losses = [
        2.3 - 1.5 / (1 + math.exp(-(step - 60) / 4)) + (0.5 * (step - 80) if step > 80 else 0)
        for step in range(100)
    ]
    result = suggest_rate(rates, losses)
    assert rates[56] < result.suggestion < rates[70]


def test_nan_losses_end_the_curve() -> None:
    """They are dropped; too few finite losses before them is an error."""
    rates = [10 ** (-5 + step / 20) for step in range(30)]
    result = suggest_rate(rates, [2.0 - 0.05 * step for step in range(20)] + [math.nan] * 10)
    assert len(result.losses) == len(result.rates) == 20
    with pytest.raises(Diverged, match=r"NaN or infinite after 3 steps, at a learning rate of 1\.3e-05"):
        suggest_rate(rates, [1.0, 1.0, 1.0, math.inf])


def test_a_range_test_finds_a_rate_that_trains(fake_recipe: Callable[..., Recipe], display: Display) -> None:
    """On fake data the suggestion is between 1e-4 and 1 and reproducible; the figure can be drawn."""
    recipe = fake_recipe("network.batch_norm=true")
    dataset, _ = load(recipe.data, recipe.geometry, None)

    def sweep() -> float:
        cpu = torch.device("cpu")
        found = find_rate(recipe, dataset, cpu, display, Interrupts(), steps=60)
        draw_range_test(found, 1e-3)
        return found.suggestion

    first = sweep()
    assert 1e-4 < first < 1
    assert sweep() == first


def test_a_range_test_can_be_stopped(fake_recipe: Callable[..., Recipe], display: Display) -> None:
    """SIGTERM ends it after a step."""
    recipe = fake_recipe()
    dataset, _ = load(recipe.data, recipe.geometry, None)
    interrupts = Interrupts()
    interrupts.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="a range test saves nothing"):
        find_rate(recipe, dataset, torch.device("cpu"), display, interrupts)
