"""Lists the layers of a network: shape, parameters, receptive field, and the arithmetic of each."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serving.bundle import Geometry
from training.networks import Network, build
from training.recipe import NetworkRecipe
from training.report.receptive_field import WHOLE, receptive_fields

_TRUNK = "trunk."


@dataclass(frozen=True, slots=True)
class Layer:
    """One module of a network."""

    name: str  # dotted, as in `--set head.layer=...`
    kind: str  # the module's class, for example Conv2d
    output: tuple[int, ...]  # shape for one image; empty if the module does not return one tensor
    parameters: int  # trainable parameters, including those of its children
    frozen: int  # frozen parameters, including those of its children
    receptive_field: str  # pixels of the image that one output depends on; empty if it is not known
    arithmetic: str  # how output and parameters follow from the settings; empty where nothing is to be said


def list_layers(recipe: NetworkRecipe, geometry: Geometry, classes: int) -> list[Layer]:
    """List all layers in the order of the module tree, parents before their children.

    Raises:
        RecipeError: the recipe's network cannot be built.
    """
    network = build(recipe, geometry, classes).eval()
    shapes = _shapes(network, geometry)
    fields = {f"{_TRUNK}{name}": field for name, field in receptive_fields(network.trunk).items()}
    modules = [(name, module) for name, module in network.named_modules() if name]
    named = sorted(modules, key=lambda entry: _is_head(entry[0]))  # constructed first, but runs last
    if fields:
        fields |= {name: WHOLE for name, _ in named if _is_head(name)}
    return [
        Layer(
            name=name,
            kind=type(module).__name__,
            output=shapes[name][1] if name in shapes else (),
            parameters=sum(value.numel() for value in module.parameters() if value.requires_grad),
            frozen=sum(value.numel() for value in module.parameters() if not value.requires_grad),
            receptive_field=fields.get(name, ""),
            arithmetic=_arithmetic(module, *shapes[name]) if name in shapes else "",
        )
        for name, module in named
    ]


def _is_head(name: str) -> bool:
    return name.partition(".")[0] == "head"


def _shapes(network: Network, geometry: Geometry) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer name -> shapes of its input and output for one black image."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def record(name: str, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor):
            given = inputs[0] if inputs else None
            shapes[name] = (
                tuple(given.shape[1:]) if isinstance(given, Tensor) else (),
                tuple(output.shape[1:]),
            )

    handles = [
        module.register_forward_hook(lambda _module, inputs, output, name=name: record(name, inputs, output))
        for name, module in network.named_modules()
        if name
    ]
    with torch.no_grad():
        network(torch.zeros((1, *geometry.shape), dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    return shapes


def _arithmetic(module: nn.Module, given: tuple[int, ...], output: tuple[int, ...]) -> str:
    """The formulas of a layer's output size and of its parameters, with their numbers."""
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        inputs = module.in_channels // module.groups
        bias = f" + {module.out_channels}" if module.bias is not None else ""
        count = sum(value.numel() for value in module.parameters())
        return (
            f"{_window(module, given, output)}; "
            f"{height} x {width} x {inputs} x {module.out_channels}{bias} = {count:,}"
        )
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _window(module, given, output)
    if isinstance(module, nn.Linear):
        bias = f" + {module.out_features}" if module.bias is not None else ""
        count = sum(value.numel() for value in module.parameters())
        return f"{module.in_features} x {module.out_features}{bias} = {count:,}"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return f"2 x {module.num_features} = {2 * module.num_features:,}"
    if isinstance(module, nn.Flatten):
        return f"{' x '.join(map(str, given))} = {math.prod(given):,}"
    return ""


def _window(
    module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, given: tuple[int, ...], output: tuple[int, ...]
) -> str:
    """The output's height: (height + padding - reach of the window) // stride + 1."""
    side, stride, padding = (_first(value) for value in (module.kernel_size, module.stride, module.padding))
    reach = _first(getattr(module, "dilation", 1)) * (side - 1) + 1
    padded = f" + 2 x {padding}" if padding else ""
    steps = f"({given[1]}{padded} - {reach})"
    if getattr(module, "ceil_mode", False):
        return f"{steps} / {stride} rounded up + 1 = {output[1]}"
    return f"{steps} // {stride} + 1 = {output[1]}"


def _first(value: object) -> int:
    return int(value[0]) if isinstance(value, tuple | list) else int(str(value))
