"""A network, its optimizer and its averaged weights: steps and restoring."""

import copy
import gc
import weakref

import pytest
import torch

from training.devices.process_group import SINGLE_PROCESS
from training.learning.learner import Learner
from training.networks import build
from training.recipe import resolve

SMALL = ("geometry.height=12", "geometry.width=12", "network.batch_norm=true")


def learner(*overrides: str) -> Learner:
    """A learner of a small LeNet-5, on eight images."""
    torch.manual_seed(0)
    recipe = resolve("lenet5-fake", [*SMALL, *overrides])
    network = build(recipe.network, recipe.geometry, 2)
    return Learner(recipe, network, IMAGES, LABELS, SINGLE_PROCESS)


IMAGES = torch.randint(0, 256, (8, 12, 12, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])


def steps(made: Learner, count: int, start: int = 0) -> list[float]:
    """Run that many steps on the eight images, and return the losses."""
    return [
        float(made.step(IMAGES, LABELS, rate=1e-2, steps=start + number + 1, batch=8)[0])
        for number in range(count)
    ]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_a_restored_learner_goes_on_bit_for_bit(optimizer: str) -> None:
    """Network, momentum and average are restored completely."""
    overrides = (f"training.optimizer={optimizer}", "training.averaging=0.9", "training.channels_last=true")
    unbroken = learner(*overrides)
    steps(unbroken, 3)
    state = copy.deepcopy(unbroken.state())
    resumed = learner(*overrides)
    steps(resumed, 1)  # astray, until it is restored
    resumed.restore(state)
    assert steps(unbroken, 3, start=3) == steps(resumed, 3, start=3)
    for name, value in unbroken.eval_network.state_dict().items():
        assert torch.equal(value, resumed.eval_network.state_dict()[name]), name


def test_the_averaged_weights_are_evaluated_if_there_are_any() -> None:
    """With averaging the evaluated network is not the trained one."""
    plain = learner()
    averaged = learner("training.averaging=0.9")
    assert plain.eval_network is plain.network
    assert averaged.eval_network is not averaged.network


def test_class_weights_make_the_rare_class_count() -> None:
    """Two of eight images weigh as much as the other six, which changes the first loss."""
    plain = learner()
    weighted = learner("training.class_balance=weights")
    assert steps(plain, 1) != steps(weighted, 1)


def test_channels_last_learns_the_same() -> None:
    """The memory format changes the losses by rounding only."""
    plain = learner()
    other = learner("training.channels_last=true")
    assert steps(other, 5) == pytest.approx(steps(plain, 5), rel=1e-3)
    filters = other.network.trunk.get_parameter("conv2.weight")
    assert filters.is_contiguous(memory_format=torch.channels_last)


def test_nothing_of_a_learner_outlives_it() -> None:
    """No reference cycle keeps it, so a CUDA graph's memory is freed when training ends."""
    made = learner("training.averaging=0.9")
    steps(made, 1)
    optimizer = weakref.ref(made.optimizer)
    gc.collect()
    gc.disable()
    try:
        del made
        assert optimizer() is None
    finally:
        gc.enable()
