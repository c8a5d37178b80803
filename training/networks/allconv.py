"""Convolutions alone (Springenberg et al. 2014, arXiv:1412.6806): no pooling, no hidden dense layer."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (48, 128, 192, 192, 128)
_STRIDED = (0, 1, 4)  # convolutions after which AlexNet pools: here a strided one shrinks by two
_KERNEL = 3


class AllConv(Network):
    """AlexNet's five convolutions, its poolings replaced by strided convolutions, batch norm throughout.

    The last convolution is as large as what is left of the image: it takes the place of the dense layers.
    """

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        layers = SequentialBuilder(recipe, geometry, batch_norm=True)
        for number, maps in enumerate(layer_sizes("maps", recipe.maps, _MAPS)):
            layers.conv(maps, _KERNEL).norm().activation()
            if number in _STRIDED:
                layers.conv(maps, _KERNEL, stride=2).norm().activation()
        layers.global_conv(layers.channels).norm().activation().flatten().dropout(0.0)
        super().__init__(layers.size, classes, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 128); (N, 128, 4, 4) before the last one at 32x32
