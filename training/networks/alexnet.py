"""A small AlexNet (Krizhevsky et al. 2012) for CIFAR-10: 2,023,370 parameters at 32x32x3."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.residual import ResidualBlock
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (48, 128, 192, 192, 128)
_HIDDEN = (1024, 1024)
_POOL = 3  # pixels: 32 -> 10 -> 3 -> 1
_DROPOUT = 0.5


class AlexNet(Network):
    """Five 3x3 convolutions, three max poolings by 3, two hidden dense layers with dropout between them.

    Optionally with batch norm, or with a residual block in place of each of the last three convolutions.
    """

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        first, second, *last = layer_sizes("maps", recipe.maps, _MAPS)
        hidden = layer_sizes("hidden", recipe.hidden, _HIDDEN)
        layers = SequentialBuilder(recipe, geometry)
        layers.conv(first, 3).norm().activation().max_pool(_POOL)
        layers.conv(second, 3).norm().activation().max_pool(_POOL)
        for maps in last:
            if recipe.residual:
                block = ResidualBlock(layers.channels, maps, recipe.activation or "relu")
                layers.add_layer("residual", block, maps)
            else:
                layers.conv(maps, 3).norm().activation()
        layers.max_pool(_POOL).flatten()
        layers.dense(hidden[0]).activation().dropout(_DROPOUT)
        layers.dense(hidden[1]).activation()
        super().__init__(layers.size, classes, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 1024); (N, 128) after flatten1 at 32x32
