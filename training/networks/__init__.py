"""Builds a network by name: one of ours, or one of torchvision's as a backbone."""

from serving.bundle import Geometry
from training.networks.alexnet import AlexNet
from training.networks.allconv import AllConv
from training.networks.backbones import build_backbone
from training.networks.conv2 import Conv2
from training.networks.fast import Fast
from training.networks.lenet5 import LeNet5
from training.networks.mlp import Mlp
from training.networks.network import Network
from training.networks.pneumonia import Pneumonia
from training.recipe import NetworkRecipe
from training.recipe.backbone_names import BACKBONES

_NETWORKS = {
    "lenet5": LeNet5,
    "conv2": Conv2,
    "mlp": Mlp,
    "alexnet": AlexNet,
    "allconv": AllConv,
    "pneumonia": Pneumonia,
    "fast": Fast,
}


def build(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> Network:
    """Build a network on the CPU; random weights come from torch's global generator.

    Args:
        recipe: the network's name and settings.
        geometry: the size and channels of its images.
        classes: number of labels.

    Raises:
        RecipeError: the settings or the geometry do not fit the network.
        WeightsError: pretrained weights cannot be read, or do not fit the network.
    """
    if recipe.name in BACKBONES:
        return build_backbone(recipe, geometry, classes)
    return _NETWORKS[recipe.name](recipe, geometry, classes)


__all__ = ["Network", "build"]
