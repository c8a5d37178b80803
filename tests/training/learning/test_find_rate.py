"""The range test finds where the loss falls fastest, and stops when it diverges."""

import math
import signal

import numpy as np
import pytest
import torch

from tests.training.fake_recipe import FakeRecipe
from training.cli import main
from training.data import load
from training.errors import Diverged, Interrupted, TrainingError
from training.learning.find_rate import draw_range_test, find_rate, suggest_rate
from training.recipe import resolve
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
    message = r"NaN or infinite at step 4, at a learning rate of 1\.4e-05; 10 .* lower --lowest, now 1e-05"
    with pytest.raises(Diverged, match=message):
        suggest_rate(rates, [1.0, 1.0, 1.0, math.inf])


def test_the_ends_of_the_range_suggest_nothing() -> None:
    """A loss that only rises, and one that falls ever faster: each names the option that helps."""
    rates = [10 ** (-5 + step / 20) for step in range(100)]
    with pytest.raises(
        TrainingError, match=r"no learning rate from 1e-05 to 0.89 lowers the loss, .* --lowest"
    ):
        suggest_rate(rates, [1.0 + 0.01 * step for step in range(100)])
    with pytest.raises(
        TrainingError, match=r"still falls fastest at .*, the end of the range: raise --highest"
    ):
        suggest_rate(rates, [2.0 - (step / 100) ** 3 for step in range(100)])


def test_a_fall_at_the_start_suggests_nothing() -> None:
    """The rates that matter are below the range."""
    rates = [10 ** (-5 + step / 20) for step in range(100)]
    with pytest.raises(TrainingError, match=r"falls fastest at .*, the start of the range: lower --lowest"):
        suggest_rate(rates, [math.exp(-step / 10) for step in range(100)])


@pytest.mark.parametrize("steps", [20, 100])
def test_noise_alone_suggests_nothing(steps: int) -> None:
    """The lowest of many noisy losses is not a fall. A real one is found in the same noise."""
    rates = [10 ** (-5 + 6 * step / steps) for step in range(steps)]
    refused, found = 0, []
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(0, 0.1, steps)
        try:
            suggest_rate(rates, (2.3 + noise).tolist())
        except TrainingError:
            refused += 1
        curve = [2.3 - 1.5 / (1 + math.exp(-(step - 0.55 * steps) / steps * 25)) for step in range(steps)]
        found.append(suggest_rate(rates, (curve + noise).tolist()).suggestion)
    assert refused >= 45
    assert min(found) / rates[int(0.55 * steps)] > 0.5
    assert max(found) / rates[int(0.55 * steps)] < 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["few-shot"], "recipe few-shot has no learning rate: its method is few-shot"),
        (["imagenet"], "recipe imagenet has no learning rate: its method is as-is"),
        (["lenet5-fake", "--highest", "inf"], "--highest"),
        (["lenet5-fake", "--picture", "rate.doc"], "--picture rate.doc must end in .png"),
        (["lenet5-fake", "--picture", "nowhere/rate.png"], "--picture nowhere/rate.png cannot be written"),
        (["lenet5-folder"], "needs --data-root"),
        (["lenet5-digits", "--data-root", "labelled"], "does not read --data-root labelled"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_trained(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with exit code 2."""
    assert main(["find-rate", *options]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_one_bad_batch_does_not_move_the_suggestion() -> None:
    """Single losses of small batches are far from the curve that they lie on."""
    rates = [10 ** (-5 + step / 20) for step in range(100)]
    curve = [2.3 - 1.5 / (1 + math.exp(-(step - 50) / 4)) for step in range(100)]
    calm = suggest_rate(rates, curve).suggestion
    for bad in (4, 10, 70):
        spiked = suggest_rate(rates, [loss + 2.0 * (step == bad) for step, loss in enumerate(curve)])
        assert 0.6 < spiked.suggestion / calm < 1.7


@pytest.mark.parametrize(("batch_size", "seed"), [(4, 0), (16, 1), (16, 2)])
def test_small_batches_do_not_end_the_test_early(batch_size: int, seed: int, display: Display) -> None:
    """Losses of few images vary by a factor of three from step to step: that is no divergence."""
    recipe = resolve("lenet5-digits", [f"training.batch_size={batch_size}", f"training.seed={seed}"])
    dataset, _ = load(recipe.data, recipe.geometry, None)
    found = find_rate(recipe, dataset, torch.device("cpu"), display, Interrupts())
    assert len(found.rates) > 60
    assert 3e-4 < found.suggestion < 0.1


def test_a_range_test_finds_a_rate_that_trains(fake_recipe: FakeRecipe, display: Display) -> None:
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


def test_a_range_test_can_be_stopped(fake_recipe: FakeRecipe, display: Display) -> None:
    """SIGTERM ends it after a step."""
    recipe = fake_recipe()
    dataset, _ = load(recipe.data, recipe.geometry, None)
    interrupts = Interrupts()
    interrupts.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="a range test saves nothing"):
        find_rate(recipe, dataset, torch.device("cpu"), display, interrupts)
