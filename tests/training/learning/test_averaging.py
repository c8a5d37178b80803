"""The moving average of weights."""

import copy

import torch

from serving.bundle import Geometry
from training.learning.averaging import WeightAverage
from training.networks import build
from training.recipe import NetworkRecipe


def test_the_average_moves_by_its_decay() -> None:
    """After many steps the average is where the decays put it; counters are copied."""
    network = build(NetworkRecipe(batch_norm=True), Geometry(height=12, width=12, channels=1), 2)
    average = WeightAverage(network, decay=0.9)
    start = copy.deepcopy(average.network.state_dict())
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(1)
    left = 1.0
    for step in (1, 2, 500):
        average.update(step)
        left *= min(0.9, (1 + step) / (10 + step))
    for name, value in average.network.state_dict().items():
        moved = value - start[name]
        expected = 1.0 if not value.is_floating_point() else 1 - left
        assert torch.allclose(moved.float(), torch.full_like(moved, expected).float(), atol=1e-5), name


def test_the_average_is_never_trained() -> None:
    """The average stays in evaluation mode, and shares no memory with the network."""
    network = build(NetworkRecipe(), Geometry(height=12, width=12, channels=1), 2).train()
    average = WeightAverage(network, decay=0.9)
    assert not average.network.training
    assert (
        average.network.head.get_parameter("weight").data_ptr()
        != network.head.get_parameter("weight").data_ptr()
    )
