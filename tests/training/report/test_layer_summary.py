"""The layers of a network match the summaries of the tutorials."""

import pytest

from serving.bundle import Geometry
from training.recipe import NetworkRecipe
from training.report.layer_summary import list_layers

DIGITS = Geometry(height=28, width=28, channels=1)


def test_lenet5_matches_its_tutorials() -> None:
    """Names, output shapes and parameters; children follow their parent."""
    layers = list_layers(NetworkRecipe(), DIGITS, 10)
    rows = {layer.name: (layer.kind, layer.output, layer.parameters) for layer in layers}
    assert rows["trunk.conv1"] == ("Conv2d", (6, 28, 28), 156)
    assert rows["trunk.pool2"] == ("MaxPool2d", (16, 5, 5), 0)
    assert rows["trunk.flatten1"] == ("Flatten", (400,), 0)
    assert rows["trunk.dense1"] == ("Linear", (120,), 48_120)
    assert rows["head"] == ("Linear", (10,), 850)
    assert rows["trunk"][2] + rows["head"][2] == 61_706
    assert [layer.name for layer in layers][:2] == ["trunk", "trunk.conv1"]
    assert layers[-1].name == "head"


@pytest.mark.parametrize(
    ("geometry", "maps", "kernel_size", "parameters"),
    [
        (DIGITS, (16, 32), 3, 16 * 3 * 3 * 32 + 32),
        (Geometry(height=32, width=32, channels=3), (6, 16), 5, None),
    ],
)
def test_convolution_arithmetic_of_the_tutorials(
    geometry: Geometry, maps: tuple[int, int], kernel_size: int, parameters: int | None
) -> None:
    """16 to 32 maps with 3x3: 4,640 parameters; RGB to 6 maps with 5x5: 456."""
    layers = list_layers(NetworkRecipe(maps=maps, kernel_size=kernel_size), geometry, 10)
    rows = {layer.name: layer.parameters for layer in layers}
    assert rows["trunk.conv2"] == 4_640 if parameters else rows["trunk.conv1"] == 456


def test_residual_blocks_list_their_shortcut_and_frozen_filters_are_counted_apart() -> None:
    """The shortcut has its own name; whitening filters are not trainable."""
    objects = Geometry(height=32, width=32, channels=3)
    residual = list_layers(NetworkRecipe(name="alexnet", batch_norm=True, residual=True), objects, 10)
    rows = {layer.name: layer for layer in residual}
    assert rows["trunk.residual1.shortcut"].parameters == 128 * 192
    assert rows["trunk.residual1"].output == (192, 3, 3)
    fast = {layer.name: layer for layer in list_layers(NetworkRecipe(name="fast"), objects, 10)}
    assert (fast["trunk.whitening1"].frozen, fast["trunk.whitening1"].parameters) == (288, 24)
