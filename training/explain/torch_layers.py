"""Layers of a torch network by name, the shapes of their outputs, and one view of the images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.networks.backbones import find_layer
from training.networks.heads import FittedHeadNetwork
from training.networks.network import Network


def base_network(network: Network) -> Network:
    """The network that has the trunk: of a fitted head, the one before it."""
    return network.extractor.network if isinstance(network, FittedHeadNetwork) else network


def layer_named(network: Network, name: str) -> nn.Module:
    """Find a layer by the name that `lenserve-train layers` prints, with or without "trunk.".

    Raises:
        RecipeError: there is no such layer; the message suggests similar names.
    """
    base = base_network(network)
    return base.head if name == "head" else find_layer(base, name)


@contextmanager
def single_view(network: Network) -> Iterator[Callable[[Tensor], Tensor]]:
    """Compute logits, (N, H, W, C) -> (N, K), without averaging several views of an image."""
    views, network.views = network.views, 1
    try:
        yield lambda images: network(images)[0]
    finally:
        network.views = views


def map_shapes(network: Network, image: Tensor) -> dict[str, tuple[int, int, int]]:
    """Name -> (maps, height, width) of each layer of the trunk with feature maps, in the order of running.

    Args:
        network: in evaluation mode.
        image: (H, W, C).
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:  # noqa: PLR2004 - (N, D, h, w)
            shapes.pop(name, None)
            shapes[name] = (output.shape[1], output.shape[2], output.shape[3])

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in base_network(network).trunk.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), single_view(network) as logits:
            logits(image[None])
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def convolutions(network: Network) -> dict[str, nn.Conv2d]:
    """Name -> convolution of the trunk, in the order of their definition."""
    return {
        name: module
        for name, module in base_network(network).trunk.named_modules()
        if isinstance(module, nn.Conv2d)
    }
