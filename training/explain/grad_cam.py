"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391), by captum: which parts speak for a label."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LayerAttribution, LayerGradCam

from serving.bundle.images import Pixels
from training.errors import RecipeError
from training.explain.torch_layers import layer_named, map_shapes, single_view
from training.networks.network import Network

Floats = npt.NDArray[np.float32]

_FINE_ENOUGH = 7  # positions along a side: what Grad-CAM is usually shown with


def default_layer(network: Network, image: Pixels) -> str:
    """The last layer whose maps have 7 x 7 positions or more, or the one with the finest maps.

    Raises:
        RecipeError: no layer has feature maps.
    """
    shapes = map_shapes(network, torch.from_numpy(image))
    if not shapes:
        raise RecipeError("Grad-CAM needs a layer with feature maps, the network has none")
    finest = max(min(shape[1:]) for shape in shapes.values())
    enough = min(finest, _FINE_ENOUGH)
    return [name for name, shape in shapes.items() if min(shape[1:]) >= enough][-1]


def grad_cam(network: Network, images: Pixels, targets: Sequence[int], layer: str) -> Floats:
    """Compute one map per image.

    Args:
        network: on the CPU, in evaluation mode.
        images: (N, H, W, C) uint8.
        targets: N indices of labels.
        layer: its name.

    Returns: (N, H, W) float32, zero or positive.

    Raises:
        RecipeError: there is no such layer, or it has no feature maps.
    """
    module = layer_named(network, layer)
    pixels = torch.from_numpy(images).float().requires_grad_()
    if len(map_shapes(network, torch.from_numpy(images[0])).get(layer.removeprefix("trunk."), ())) == 0:
        raise RecipeError(f"Grad-CAM needs feature maps, layer {layer!r} has none: choose a convolution")
    with single_view(network) as logits:
        maps = LayerGradCam(logits, module).attribute(
            pixels, target=list(targets), relu_attributions=True
        )  # (N, 1, h, w)
    fitted = LayerAttribution.interpolate(maps.detach(), images.shape[1:3], "bilinear")  # (N, 1, H, W)
    return np.asarray(fitted[:, 0].numpy(), np.float32)
