"""The two-convolution network of the MNIST tutorials: 454,922 parameters at 28x28x1."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.stack import Stack, sizes
from training.recipe import NetworkRecipe

_MAPS = (32, 64)
_HIDDEN = (128,)


class Conv2(Network):
    """Two convolutions of 5x5, each halved by pooling, and one hidden dense layer."""

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        stack = Stack(recipe, geometry)
        for maps in sizes("maps", recipe.maps, _MAPS):
            stack.conv(maps, 5).norm().activation().max_pool(2)
        stack.flatten()
        for units in sizes("hidden", recipe.hidden, _HIDDEN):
            stack.dense(units).norm().activation().dropout(0.0)
        super().__init__(stack.size, classes, views=recipe.views)
        self.trunk = stack.build()  # -> (N, 128); (N, 3136) after flatten1 at 28x28
