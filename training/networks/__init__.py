"""Networks by name: our own, and torchvision's as backbones."""

from serving.bundle import Geometry
from training.networks.alexnet import AlexNet
from training.networks.allconv import AllConv
from training.networks.backbones import build_backbone
from training.networks.conv2 import Conv2
from training.networks.fast import Fast
from training.networks.lenet5 import LeNet5
from training.networks.network import Network
from training.networks.pneumonia import Pneumonia
from training.recipe import NetworkRecipe
from training.recipe.backbone_names import BACKBONES

_NETWORKS = {
    "lenet5": LeNet5,
    "conv2": Conv2,
    "alexnet": AlexNet,
    "allconv": AllConv,
    "pneumonia": Pneumonia,
    "fast": Fast,
}


def build(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> Network:
    """A network with fresh weights from torch's global generator.

    Raises:
        RecipeError: the network cannot take this geometry.
        WeightsError: pretrained weights cannot be read, or belong to another network.
    """
    if recipe.name in BACKBONES:
        return build_backbone(recipe, geometry, classes)
    return _NETWORKS[recipe.name](recipe, geometry, classes)


__all__ = ["Network", "build"]
