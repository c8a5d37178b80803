"""The layers of a network match the summaries of the tutorials."""

import pytest
import torch
from torch import nn

from serving.bundle import Geometry
from training.networks import build
from training.recipe import NetworkRecipe
from training.report.layer_summary import list_layers
from training.report.receptive_field import receptive_fields

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


def test_arithmetic_is_printed_with_its_numbers() -> None:
    """Output size and parameters of convolutions, pooling, flattening and dense layers."""
    rows = {layer.name: layer.arithmetic for layer in list_layers(NetworkRecipe(batch_norm=True), DIGITS, 10)}
    assert rows["trunk.conv1"] == "(28 + 2 x 2 - 5) // 1 + 1 = 28; 5 x 5 x 1 x 6 + 6 = 156"
    assert rows["trunk.norm1"] == "2 x 6 = 12"
    assert rows["trunk.pool1"] == "(28 - 2) // 2 + 1 = 14"
    assert rows["trunk.flatten1"] == "16 x 5 x 5 = 400"
    assert rows["head"] == "84 x 10 + 10 = 850"
    assert not rows["trunk.relu1"]


def test_receptive_fields_of_known_networks() -> None:
    """LeNet-5 by hand; ResNet-18 has the published 435 pixels; transformers cannot be traced or see all."""
    fields = {layer.name: layer.receptive_field for layer in list_layers(NetworkRecipe(), DIGITS, 10)}
    assert [fields[f"trunk.{name}"] for name in ("conv1", "pool1", "conv2", "pool2")] == [
        "5 x 5",
        "6 x 6",
        "14 x 14",
        "16 x 16",
    ]
    assert fields["trunk.dense1"] == fields["head"] == "whole image"
    photograph = Geometry(height=224, width=224, channels=3)
    deep = {layer.name: layer for layer in list_layers(NetworkRecipe(name="resnet18"), photograph, 10)}
    assert deep["trunk.layer4.1.conv2"].receptive_field == "435 x 435"
    assert deep["trunk.avgpool"].receptive_field == "whole image"
    assert deep["trunk.conv1"].arithmetic.startswith(
        "(224 + 2 x 3 - 7) // 2 + 1 = 112; 7 x 7 x 3 x 64 = 9,408"
    )


@pytest.mark.parametrize("name", ["conv1", "conv2", "residual1.act2", "residual2.act2"])
def test_receptive_fields_are_those_of_gradients(name: str) -> None:
    """An output in the middle depends on just as many pixels, also behind poolings and branches."""
    recipe = NetworkRecipe(name="alexnet", residual=True)
    trunk = build(recipe, Geometry(height=201, width=201, channels=1), 2).trunk.eval()
    expected = receptive_fields(trunk)[name]
    for part, module in list(trunk.named_children()):
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
        if isinstance(module, nn.MaxPool2d):  # its gradient reaches one pixel only
            setattr(trunk, part, nn.AvgPool2d(module.kernel_size, module.stride))
    seen: list[torch.Tensor] = []
    trunk.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    image = torch.rand(1, 1, 201, 201, requires_grad=True)
    trunk(image)
    middle = seen[0][0, :, seen[0].shape[2] // 2, seen[0].shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(middle, image)
    rows, columns = (gradient[0, 0].abs().sum(dim=axis).nonzero() for axis in (1, 0))
    assert expected == " x ".join(str(int(each.max() - each.min()) + 1) for each in (rows, columns))
