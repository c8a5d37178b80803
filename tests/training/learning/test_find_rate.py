"""The sweep finds where the loss falls fastest, and stops when it explodes."""

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
    """A made curve: flat, falling around step 60, exploding after 80."""
    rates = [10 ** (-5 + step / 20) for step in range(100)]
    losses = [
        2.3 - 1.5 / (1 + math.exp(-(step - 60) / 4)) + (0.5 * (step - 80) if step > 80 else 0)
        for step in range(100)
    ]
    result = suggest_rate(rates, losses)
    assert rates[56] < result.suggestion < rates[70]


def test_losses_that_are_no_numbers_end_the_curve() -> None:
    """They are left out; where there are too few before them, that is said."""
    rates = [10 ** (-5 + step / 20) for step in range(30)]
    result = suggest_rate(rates, [2.0 - 0.05 * step for step in range(20)] + [math.nan] * 10)
    assert len(result.losses) == len(result.rates) == 20
    with pytest.raises(Diverged, match=r"NaN or infinite after 3 steps, at a learning rate of 1\.3e-05"):
        suggest_rate(rates, [1.0, 1.0, 1.0, math.inf])


def test_a_real_sweep_finds_a_rate_that_trains(fake_recipe: Callable[..., Recipe], display: Display) -> None:
    """On made-up data: between a ten-thousandth and one; the picture can be drawn; the draw repeats."""
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


def test_a_sweep_can_be_stopped(fake_recipe: Callable[..., Recipe], display: Display) -> None:
    """SIGTERM ends it after a step."""
    recipe = fake_recipe()
    dataset, _ = load(recipe.data, recipe.geometry, None)
    interrupts = Interrupts()
    interrupts.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="a range test saves nothing"):
        find_rate(recipe, dataset, torch.device("cpu"), display, interrupts)
