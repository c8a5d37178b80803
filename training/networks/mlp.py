"""A multilayer perceptron, the tutorials' baseline: no convolution, 669,706 parameters at 28x28x1."""

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder
from training.recipe import NetworkRecipe

_HIDDEN = (512, 512)
_DROPOUT = 0.2


class Mlp(Network):
    """Hidden dense layers on the pixels, as many as network.hidden has sizes, with dropout after each."""

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        layers = SequentialBuilder(recipe, geometry)
        layers.flatten()
        for units in recipe.hidden or _HIDDEN:
            layers.dense(units).norm().activation().dropout(_DROPOUT)
        super().__init__(layers.size, classes, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 512)
