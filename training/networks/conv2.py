"""The two-convolution network of the MNIST tutorials: 454,922 parameters at 28x28x1."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (32, 64)
_HIDDEN = (128,)


class Conv2(Network):
    """Two 5x5 convolutions, each followed by 2x2 max pooling, and one hidden dense layer."""

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        layers = SequentialBuilder(recipe, geometry)
        for maps in layer_sizes("maps", recipe.maps, _MAPS):
            layers.conv(maps, 5).norm().activation().max_pool(2)
        layers.flatten()
        for units in layer_sizes("hidden", recipe.hidden, _HIDDEN):
            layers.dense(units).norm().activation().dropout(0.0)
        super().__init__(layers.size, classes, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 128); (N, 3136) after flatten1 at 28x28
