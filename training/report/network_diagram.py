"""The network as a picture: every layer with its shape, parameters and multiply-accumulates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serving.bundle import Geometry
from training.networks import Network
from training.report.blocks import Diagram, Layer

_MOST_ROWS = 24  # of a deeper network whole blocks are shown


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer as it ran for one image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int  # multiply-accumulates


def layer_costs(network: Network, geometry: Geometry) -> list[LayerCost]:
    """The layers without children, in the order in which they run on one view of an image."""
    costs: list[LayerCost] = []

    def record(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor) and isinstance(inputs[0], Tensor):
            parameters = sum(value.numel() for value in module.parameters())
            changes = parameters or inputs[0].shape != output.shape
            if costs and not changes:  # an activation or dropout belongs to the layer before it
                before = costs[-1]
                kind = before.kind if isinstance(module, nn.Dropout) else f"{before.kind}, {_kind(module)}"
                costs[-1] = LayerCost(before.name, kind, before.output, before.parameters, before.macs)
                return
            macs = _macs(module, inputs[0], output)
            costs.append(LayerCost(name, _kind(module), tuple(output.shape[1:]), parameters, macs))

    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: record(name, module, inputs, output)
        )
        for name, module in leaves
    ]
    views, network.views = network.views, 1
    try:
        with torch.no_grad():
            network.eval()(torch.zeros((1, *geometry.shape), dtype=torch.uint8))
    finally:
        network.views = views
        for handle in handles:
            handle.remove()
    return costs


def network_diagram(name: str, network: Network, geometry: Geometry) -> Diagram:
    """Draw a network from its input to its output."""
    costs = layer_costs(network, geometry)
    rows = _grouped(costs)
    widest = max(geometry.height, geometry.width)
    deepest = max([geometry.channels, *(cost.output[0] for cost in rows if cost.output)])
    layers = [
        Layer("input", "image", _shape((geometry.channels, geometry.height, geometry.width)), "", 1.0, 0.0)
    ]
    layers += [
        Layer(
            cost.name.removeprefix("trunk."),
            cost.kind,
            _shape(cost.output),
            _details(cost),
            width=(max(cost.output[1:]) / widest) if len(cost.output) == 3 else 0.0,  # noqa: PLR2004 - maps
            height=(cost.output[0] / deepest) if cost.output else 0.0,
        )
        for cost in rows
    ]
    macs, parameters = (sum(getattr(cost, key) for cost in costs) for key in ("macs", "parameters"))
    views = f" for each of {network.views} views" if network.views > 1 else ""
    return Diagram(
        f"The network, {name}",
        tuple(layers),
        caption=f"{parameters:,} parameters, {_short(macs)} multiply-accumulates{views}. The width of a bar "
        "is the side of the feature map, its height the number of channels.",
    )


def _grouped(costs: Sequence[LayerCost]) -> list[LayerCost]:
    """Join the layers of a block, on the deepest level that leaves few enough rows."""
    depth = max((cost.name.count(".") + 1 for cost in costs), default=1)
    rows = list(costs)
    while len(rows) > _MOST_ROWS and depth > 1:
        depth -= 1
        rows = []
        for cost in costs:
            key = ".".join(cost.name.split(".")[:depth])
            if rows and rows[-1].name == key:
                before = rows[-1]
                rows[-1] = LayerCost(
                    key,
                    "block",
                    cost.output,
                    before.parameters + cost.parameters,
                    before.macs + cost.macs,
                )
            else:
                kind = cost.kind if key == cost.name else "block"
                rows.append(LayerCost(key, kind, cost.output, cost.parameters, cost.macs))
    return rows


def _macs(module: nn.Module, given: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return output.numel() * module.in_channels // module.groups * height * width
    return output.numel() * given.shape[-1] if isinstance(module, nn.Linear) else 0


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        return f"Conv2d {' x '.join(map(str, module.kernel_size))}"
    return type(module).__name__


def _shape(shape: tuple[int, ...]) -> str:
    """Height x width x channels, as people write it."""
    ordered = (*shape[1:], shape[0]) if len(shape) == 3 else shape  # noqa: PLR2004
    return " x ".join(map(str, ordered))


def _details(cost: LayerCost) -> str:
    parts = [f"{cost.parameters:,} parameters"] if cost.parameters else []
    if cost.macs:
        parts.append(f"{_short(cost.macs)} MACs")
    return ", ".join(parts)


def _short(count: int) -> str:
    for factor, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= factor:
            return f"{count / factor:.3g}{name}"
    return str(count)
