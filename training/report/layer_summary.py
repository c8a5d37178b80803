"""Lists the layers of a network: name, output shape, number of parameters."""

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
    kind: str  # the module's class, for example Conv2d
    output: tuple[int, ...]  # shape for one image; empty if the module does not return one tensor
    parameters: int  # trainable parameters, including those of its children
    frozen: int  # frozen parameters, including those of its children


def list_layers(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> list[Layer]:
    """List all layers in the order of the module tree, parents before their children.

    Raises:
        RecipeError: the recipe's network cannot be built.
    """
    network = build(recipe, geometry, classes).eval()
    outputs = _output_shapes(network, geometry)
    named = [(name, module) for name, module in network.named_modules() if name]
    named.sort(key=lambda entry: entry[0] == "head")  # constructed first, but runs last
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
    """Layer name -> output shape for one black image."""
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
