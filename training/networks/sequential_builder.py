"""Builds a torch.nn.Sequential of named layers, tracking the shape after each layer."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Self

from torch import nn

from serving.bundle import Geometry
from serving.counted import counted
from training.errors import RecipeError
from training.networks.activations import activation
from training.recipe import NetworkRecipe


class SequentialBuilder:
    """Adds layers in order, named by kind and number: conv1, relu1, pool1, dense1.

    Only this class computes convolution shapes. Settings of the recipe override the defaults of a network.
    """

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, *, batch_norm: bool = False) -> None:
        self.channels: int = geometry.channels
        self.height, self.width = geometry.height, geometry.width
        self._recipe = recipe
        self._batch_norm = batch_norm if recipe.batch_norm is None else recipe.batch_norm
        self._layers: OrderedDict[str, nn.Module] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._flat = False

    @property
    def size(self) -> int:
        """Number of activations per image."""
        return self.channels if self._flat else self.channels * self.height * self.width

    def conv(self, maps: int, kernel_size: int, *, stride: int = 1, same: bool = True) -> Self:
        """Add a convolution. same: pad so that stride 1 keeps the size."""
        side = self._recipe.kernel_size if self._recipe.kernel_size and kernel_size > 1 else kernel_size
        padding = side // 2 if same else 0
        layer = nn.Conv2d(self.channels, maps, side, stride=stride, padding=padding)
        self._add("conv", layer)
        # With padding, an even kernel enlarges the image by a pixel, in both torch and ONNX.
        self._resize(lambda length: (length + 2 * padding - side) // stride + 1)
        self.channels = maps
        return self

    def norm(self, *, momentum: float = 0.1) -> Self:
        """Add batch norm, if the recipe or the network uses it."""
        if self._batch_norm:
            kind = nn.BatchNorm1d if self._flat else nn.BatchNorm2d
            self._add("norm", kind(self.channels, momentum=momentum))
        return self

    def activation(self, default: str = "relu") -> Self:
        """Add the recipe's activation, or the default."""
        name = self._recipe.activation or default
        self._add(name.replace("-", "_"), activation(name))
        return self

    def max_pool(self, size: int) -> Self:
        """Add max pooling over size x size pixels, without overlap."""
        self._add("pool", nn.MaxPool2d(size))
        self._resize(lambda length: length // size)
        return self

    def flatten(self) -> Self:
        """Flatten the activations to (N, size)."""
        self._add("flatten", nn.Flatten())
        self.channels, self._flat = self.size, True
        return self

    def dense(self, units: int) -> Self:
        """Add a dense (fully connected) layer."""
        self._add("dense", nn.Linear(self.channels, units))
        self.channels = units
        return self

    def dropout(self, default: float) -> Self:
        """Add dropout with the recipe's probability, or the default; nothing if it is 0."""
        probability = default if self._recipe.dropout is None else self._recipe.dropout
        if probability:
            self._add("dropout", nn.Dropout(probability))
        return self

    def global_conv(self, maps: int) -> Self:
        """Add a convolution over the whole remaining image; its output is 1x1."""
        self._add("conv", nn.Conv2d(self.channels, maps, (self.height, self.width)))
        self.channels, self.height, self.width = maps, 1, 1
        return self

    def add_layer(self, kind: str, layer: nn.Module, channels: int, *, shrink_px: int = 0) -> Self:
        """Add any other layer.

        Args:
            kind: name of the layer, without the number.
            layer: the module.
            channels: channels of the output.
            shrink_px: pixels by which it reduces height and width.
        """
        self._add(kind, layer)
        self._resize(lambda length: length - shrink_px)
        self.channels = channels
        return self

    def build(self) -> nn.Sequential:
        """Return the layers as one module."""
        return nn.Sequential(self._layers)

    def _add(self, kind: str, layer: nn.Module) -> None:
        self._counts[kind] += 1
        self._layers[f"{kind}{self._counts[kind]}"] = layer

    def _resize(self, shrink: Callable[[int], int]) -> None:
        before = self.height, self.width
        self.height, self.width = shrink(self.height), shrink(self.width)
        if min(self.height, self.width) < 1:
            raise RecipeError(
                f"geometry: the images are too small for {self._recipe.name}: nothing is left of "
                f"{before[0]}x{before[1]} pixels after {next(reversed(self._layers))}. Use larger images"
            )


def layer_sizes(key: str, given: Sequence[int] | None, default: Sequence[int]) -> Sequence[int]:
    """Return the recipe's layer sizes, or the network's defaults.

    Raises:
        RecipeError: the number of sizes is not the network's number of layers.
    """
    if given is None:
        return default
    if len(given) != len(default):
        raise RecipeError(
            f"network.{key} has {counted(len(given), 'size')}, but the network has "
            f"{counted(len(default), 'such layer')}"
        )
    return given
