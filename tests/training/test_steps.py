"""The mathematics of a step, and the order of the images."""

import pytest
import torch

from serving.bundle import Geometry
from training.networks import build
from training.recipe import NetworkRecipe, TrainingRecipe
from training.schedule import learning_rate
from training.steps import epoch_order, measure, steps_per_epoch, train_step


def test_order_is_a_permutation_that_follows_from_seed_and_epoch() -> None:
    """Each image once; the same for the same seed and epoch, and another one otherwise."""
    order = epoch_order(100, seed=3, epoch=7)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, epoch_order(100, seed=3, epoch=7))
    assert not torch.equal(order, epoch_order(100, seed=3, epoch=8))
    assert not torch.equal(order, epoch_order(100, seed=4, epoch=7))


def test_only_whole_batches_count_but_at_least_one() -> None:
    """A remainder sits out, so that no batch is too small for batch norm."""
    assert [steps_per_epoch(images, 32) for images in (129, 64, 63, 5)] == [4, 2, 1, 1]


def test_steps_lower_the_loss_on_one_batch() -> None:
    """A network can learn eight images by heart."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(), Geometry(height=12, width=12, channels=1), 2).train()
    images = torch.randint(0, 256, (8, 12, 12, 1), dtype=torch.uint8)
    labels = torch.arange(8) % 2
    optimizer = torch.optim.Adam(network.parameters())
    losses = [float(train_step(network, optimizer, images, labels, 1e-2)) for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]
    loss, accuracy = measure(network, images, labels)
    assert (loss < 0.1, accuracy) == (True, 1.0)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_stays_within_its_bounds(schedule: str) -> None:
    """It begins at the recipe's rate, never rises, and cosine ends near zero."""
    recipe = TrainingRecipe.model_validate({"learning_rate": 0.5, "schedule": schedule})
    rates = [learning_rate(step, 100, recipe) for step in range(100)]
    assert rates[0] == 0.5
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == (0.5 if schedule == "constant" else pytest.approx(0, abs=1e-3))
