"""Networks by name."""

from serving.bundle import Geometry
from training.networks.lenet5 import LeNet5
from training.networks.network import Network
from training.recipe import NetworkRecipe

_NETWORKS = {"lenet5": LeNet5}


def build(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> Network:
    """A network with fresh weights from torch's global generator.

    Raises:
        RecipeError: the network cannot take this geometry.
    """
    return _NETWORKS[recipe.name](geometry, classes, batch_norm=recipe.batch_norm, dropout=recipe.dropout)


__all__ = ["Network", "build"]
