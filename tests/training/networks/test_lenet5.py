"""LeNet-5 has the published number of parameters, and works at any geometry."""

import pytest
import torch

from serving.bundle import Geometry
from training.errors import RecipeError
from training.networks import build
from training.recipe import NetworkRecipe

DIGITS = Geometry(height=28, width=28, channels=1)


def test_plain_lenet5_has_61706_parameters() -> None:
    """28x28 grey, 10 classes: 61,706 parameters and no buffers."""
    network = build(NetworkRecipe(), DIGITS, 10)
    assert network.parameter_count() == 61_706
    assert not list(network.buffers())


def test_batch_norm_adds_452_parameters_and_452_statistics() -> None:
    """Batch norm after both convolutions and both hidden layers: 62,158 parameters, 452 statistics."""
    network = build(NetworkRecipe(batch_norm=True), DIGITS, 10)
    assert network.parameter_count() == 62_158
    statistics = [value.numel() for name, value in network.named_buffers() if "running" in name]
    assert sum(statistics) == 452


@pytest.mark.parametrize(
    ("geometry", "parameters"),
    [
        (Geometry(height=28, width=28, channels=3), 62_006),
        (Geometry(height=12, width=40, channels=1), None),
        (Geometry(height=65, width=33, channels=3), None),
    ],
)
def test_other_geometries_flow_through(geometry: Geometry, parameters: int | None) -> None:
    """Channels and sides of any size give logits (N, K) and an embedding (N, 84)."""
    network = build(NetworkRecipe(dropout=0.5), geometry, 3 if parameters is None else 10).eval()
    images = torch.zeros((2, geometry.height, geometry.width, geometry.channels), dtype=torch.uint8)
    logits, embedding = network(images)
    assert embedding.shape == (2, 84)
    assert len(logits) == 2
    if parameters is not None:
        assert network.parameter_count() == parameters


def test_too_small_an_image_is_refused_with_both_numbers() -> None:
    """If nothing is left after pooling, the RecipeError says where."""
    with pytest.raises(RecipeError, match=r"nothing is left of 10x1 pixels after pool2"):
        build(NetworkRecipe(), Geometry(height=28, width=11, channels=1), 10)


def test_dropout_is_off_in_evaluation() -> None:
    """The logits of an image are constant in evaluation mode, and vary in training mode."""
    torch.manual_seed(0)
    network = build(NetworkRecipe(dropout=0.5), DIGITS, 10)
    images = torch.randint(0, 256, (1, 28, 28, 1), dtype=torch.uint8)
    with torch.no_grad():
        assert not torch.equal(network(images)[0], network(images)[0])
        network.eval()
        assert torch.equal(network(images)[0], network(images)[0])
