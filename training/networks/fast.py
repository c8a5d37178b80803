"""A network that trains in a few epochs: fixed whitening filters, then wide blocks with batch norm.

It follows the CIFAR-10 speed records (Jordan 2024, arXiv:2404.00498): filters computed from the images whiten
small patches, so that the input of the first trained layer is decorrelated; convolutions are initialised near
the identity; the logits are scaled down, so that early losses stay small.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from serving.bundle import Geometry
from training.networks.network import Network
from training.networks.sequential_builder import SequentialBuilder, layer_sizes
from training.recipe import NetworkRecipe

_MAPS = (64, 256, 256)
_PATCH = 2  # side of a whitened patch, in pixels
_IMAGES = 5000  # number of images to compute the filters from
_FLOOR = 5e-4  # added to each variance, so that directions without signal are not amplified to noise
_NORM_MOMENTUM = 0.4  # high, because the running statistics must converge in few steps
_LOGIT_SCALE = 1 / 9


class Fast(Network):
    """Whitening, then blocks of two 3x3 convolutions that each halve the sides, then a linear head."""

    def __init__(self, recipe: NetworkRecipe, geometry: Geometry, classes: int) -> None:
        maps_of_blocks = layer_sizes("maps", recipe.maps, _MAPS)
        filters = 2 * geometry.channels * _PATCH**2  # each direction and its negative
        whitening = nn.Conv2d(geometry.channels, filters, _PATCH)
        whitening.weight.requires_grad_(False)  # noqa: FBT003 - positional-only in torch
        layers = SequentialBuilder(recipe, geometry, batch_norm=True)
        layers.add_layer("whitening", whitening, filters, shrink_px=_PATCH - 1).activation("gelu")
        for maps in maps_of_blocks:
            layers.conv(maps, 3).max_pool(2).norm(momentum=_NORM_MOMENTUM).activation("gelu")
            layers.conv(maps, 3).norm(momentum=_NORM_MOMENTUM).activation("gelu")
        layers.max_pool(min(layers.height, layers.width)).flatten().dropout(0.0)
        super().__init__(layers.size, classes, views=recipe.views)
        self.trunk = layers.build()  # -> (N, 256); (N, 256, 3, 3) before the last pooling at 32x32
        _initialise_near_identity(self.trunk)

    def logits(self, embedding: Tensor) -> Tensor:
        """(N, 256) -> (N, K)."""
        logits: Tensor = self.head(embedding) * _LOGIT_SCALE  # (N, K)
        return logits

    def initialise_from_data(self, first: Callable[[int], Tensor]) -> None:
        """Set the whitening filters: principal components of small patches, scaled to unit variance."""
        pixels = first(_IMAGES).permute(0, 3, 1, 2).float() / 255  # (N, C, H, W)
        channels = pixels.shape[1]
        patches = pixels.unfold(2, _PATCH, 1).unfold(3, _PATCH, 1)  # (N, C, h, w, P, P)
        rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * _PATCH**2).double()  # (M, C * P * P)
        covariance = torch.cov(rows.T)  # (C * P * P, C * P * P)
        variances, directions = torch.linalg.eigh(covariance)  # ascending; directions are columns
        scaled = (directions / torch.sqrt(variances + _FLOOR)).T.flip(0)  # one row per direction
        filters = scaled.reshape(-1, channels, _PATCH, _PATCH)
        weight = torch.cat([filters, -filters])  # (2 * C * P * P, C, P, P)
        self.trunk.get_parameter("whitening1.weight").data.copy_(weight)


def _initialise_near_identity(trunk: nn.Module) -> None:
    """Initialise the first filters of each trained convolution to pass its input channels through."""
    for name, layer in trunk.named_children():
        if name.startswith("conv") and isinstance(layer, nn.Conv2d):
            channels = min(layer.in_channels, layer.out_channels)
            nn.init.dirac_(layer.weight.data[:channels])
