"""Layers of a torch network by name, the shapes of their outputs, and one view of the images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from serving.bundle import Geometry
from training.networks.backbones import find_layer
from training.networks.heads import FittedHeadNetwork
from training.networks.network import Network

_MOST_BYTES = 2**30
_BYTES_PER_ACTIVATION = 12  # the value, its gradient, and what a layer needs in between: float32


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


@torch.no_grad()
def images_at_once(network: Network, geometry: Geometry, most_bytes: int = _MOST_BYTES) -> int:
    """Return how many images may be optimised at once, by what their activations and gradients take.

    Args:
        network: on the CPU.
        geometry: of its images.
        most_bytes: of all images together; a single image may take more.
    """
    values = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal values
        values += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in network.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(count) for module in leaves]
    try:
        network(torch.zeros(1, *geometry.shape, dtype=torch.uint8))
    finally:
        for handle in handles:
            handle.remove()
    return max(1, most_bytes // (_BYTES_PER_ACTIVATION * values))
