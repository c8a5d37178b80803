"""LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as taught today: 61,706 parameters at 28x28x1."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (6, 16)
_HIDDEN = (120, 84)


class LeNet5(Network):
    """Two 5x5 convolutions and three dense layers, optionally with batch norm and dropout."""

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        first, second = layer_sizes("maps", recipe.maps, _MAPS)
        hidden = layer_sizes("hidden", recipe.hidden, _HIDDEN)
        layers = SequentialBuilder(recipe, geometry)
        layers.conv(first, 5).norm().activation().max_pool(2)
        layers.conv(second, 5, same=False).norm().activation().max_pool(2)
        layers.flatten()
        for units in hidden:
            layers.dense(units).norm().activation().dropout(0.0)
        super().__init__(layers.size, classes, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 84); (N, 400) after flatten1 at 28x28
