"""The all-convolutional network (Springenberg et al. 2014, arXiv:1412.6806), without pooling."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (48, 128, 192, 192, 128)
_STRIDED = (0, 1, 4)  # after these convolutions, where AlexNet pools, comes one of stride 2
_KERNEL = 3


class AllConv(Network):
    """The small AlexNet's convolutions with batch norm, its poolings replaced by strided convolutions.

    A last convolution over the whole remaining image replaces the dense layers.
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
