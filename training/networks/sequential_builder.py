"""A chain of named layers under construction, which knows the shape that it has come to."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Self

from torch import nn

from serving.bundle import Geometry
from training.errors import RecipeError
from training.networks.activations import activation
from training.recipe import NetworkRecipe


class SequentialBuilder:
    """Layers in order, each named after its kind and number: conv1, relu1, pool1, dense1.

    A class because each layer needs the shape that those before it left; the convolution arithmetic is here
    and nowhere else. Settings of the recipe win over what a network asks for.
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
        """Numbers that an image has become."""
        return self.channels if self._flat else self.channels * self.height * self.width

    def conv(self, maps: int, kernel_size: int, *, stride: int = 1, same: bool = True) -> Self:
        """A convolution; same: padded so that at stride 1 the sides stay."""
        side = self._recipe.kernel_size if self._recipe.kernel_size and kernel_size > 1 else kernel_size
        padding = side // 2 if same else 0
        layer = nn.Conv2d(self.channels, maps, side, stride=stride, padding=padding)
        self._add("conv", layer)
        # An even kernel with padding would enlarge by a pixel; that is how torch and ONNX count it too.
        self._resize(lambda length: (length + 2 * padding - side) // stride + 1)
        self.channels = maps
        return self

    def norm(self, *, momentum: float = 0.1) -> Self:
        """Batch norm, where the recipe or the network wants it."""
        if self._batch_norm:
            kind = nn.BatchNorm1d if self._flat else nn.BatchNorm2d
            self._add("norm", kind(self.channels, momentum=momentum))
        return self

    def activation(self, default: str = "relu") -> Self:
        """The non-linearity: the recipe's, or this one."""
        name = self._recipe.activation or default
        self._add(name.replace("-", "_"), activation(name))
        return self

    def max_pool(self, size: int) -> Self:
        """The largest of each square of pixels, side by side."""
        self._add("pool", nn.MaxPool2d(size))
        self._resize(lambda length: length // size)
        return self

    def flatten(self) -> Self:
        """Planes become one row of numbers."""
        self._add("flatten", nn.Flatten())
        self.channels, self._flat = self.size, True
        return self

    def dense(self, units: int) -> Self:
        """A dense layer."""
        self._add("dense", nn.Linear(self.channels, units))
        self.channels = units
        return self

    def dropout(self, default: float) -> Self:
        """Dropout by the recipe's probability, or this one; none where it is 0."""
        probability = default if self._recipe.dropout is None else self._recipe.dropout
        if probability:
            self._add("dropout", nn.Dropout(probability))
        return self

    def global_conv(self, maps: int) -> Self:
        """A convolution as large as what is left of the image: one pixel remains."""
        self._add("conv", nn.Conv2d(self.channels, maps, (self.height, self.width)))
        self.channels, self.height, self.width = maps, 1, 1
        return self

    def add_layer(self, kind: str, layer: nn.Module, channels: int, *, shrink_px: int = 0) -> Self:
        """A layer made elsewhere, and what it takes off each side."""
        self._add(kind, layer)
        self._resize(lambda length: length - shrink_px)
        self.channels = channels
        return self

    def build(self) -> nn.Sequential:
        """The chain."""
        return nn.Sequential(self._layers)

    def _add(self, kind: str, layer: nn.Module) -> None:
        self._counts[kind] += 1
        self._layers[f"{kind}{self._counts[kind]}"] = layer

    def _resize(self, shrink: Callable[[int], int]) -> None:
        before = self.height, self.width
        self.height, self.width = shrink(self.height), shrink(self.width)
        if min(self.height, self.width) < 1:
            raise RecipeError(
                f"geometry: nothing is left of {before[0]}x{before[1]} pixels after "
                f"{next(reversed(self._layers))} of {self._recipe.name}: the images are too small for it"
            )


def layer_sizes(key: str, asked: Sequence[int] | None, default: Sequence[int]) -> Sequence[int]:
    """The recipe's layer sizes, or the network's own.

    Raises:
        RecipeError: not as many as the network has layers.
    """
    if asked is None:
        return default
    if len(asked) != len(default):
        raise RecipeError(
            f"network.{key}: got {len(asked)} sizes, this network has {len(default)} such layers"
        )
    return asked
