"""Every layer of a network with its output shape and its parameters, by the name that recipes call it by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from serving.bundle import Geometry
from training.networks import Network, build
from training.recipe import NetworkRecipe


@dataclass(frozen=True, slots=True)
class Layer:
    """One module of a network."""

    name: str  # dotted, as in `--set head.layer=...`
    kind: str  # Conv2d, say
    output: tuple[int, ...]  # of one image; empty for one that was not run by itself
    parameters: int  # trainable, of this layer and all below it
    frozen: int  # the same, not trainable


def list_layers(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> list[Layer]:
    """All layers in the order of the tree, each parent before its children.

    Raises:
        RecipeError: the network cannot be built so.
    """
    network = build(recipe, geometry, classes).eval()
    outputs = _output_shapes(network, geometry)
    named = [(name, module) for name, module in network.named_modules() if name]
    named.sort(key=lambda entry: entry[0] == "head")  # made first, but run last
    return [
        Layer(
            name=name,
            kind=type(module).__name__,
            output=outputs.get(name, ()),
            parameters=sum(value.numel() for value in module.parameters() if value.requires_grad),
            frozen=sum(value.numel() for value in module.parameters() if not value.requires_grad),
        )
        for name, module in named
    ]


def _output_shapes(network: Network, geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what the layer made of one black image."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape[1:])

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in network.named_modules()
        if name
    ]
    with torch.no_grad():
        network(torch.zeros((1, *geometry.shape), dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    return shapes
