"""The receptive field of each layer: the part of the image that one of its outputs depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

WHOLE = "whole image"

# Each output of these depends on all positions.
_GLOBAL_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear)
_GLOBAL_FUNCTIONS = ("flatten", "mean", "adaptive_avg_pool2d", "view", "reshape")
_POOLING_FUNCTIONS = ("max_pool2d", "avg_pool2d")


@dataclass(frozen=True, slots=True)
class _Field:
    """Height and width in pixels, and the distance in pixels between the fields of two neighbours."""

    size: tuple[float, float] = (1, 1)
    jump: tuple[float, float] = (1, 1)

    def through(
        self, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> "_Field":
        """The field after a window of this size."""
        size = tuple(
            field + spread * (side - 1) * jump
            for field, side, spread, jump in zip(self.size, kernel, dilation, self.jump, strict=True)
        )
        jump = tuple(old * step for old, step in zip(self.jump, stride, strict=True))
        return _Field((size[0], size[1]), (jump[0], jump[1]))


_EVERYWHERE = _Field((float("inf"), float("inf")))


def receptive_fields(trunk: nn.Module) -> dict[str, str]:
    """Layer name -> receptive field, such as "14 x 14" pixels, or "whole image".

    Branches that join, as in residual blocks, have the larger field. Empty for networks that torch.fx cannot
    trace, such as transformers.
    """
    try:
        graph = fx.symbolic_trace(trunk).graph
    except Exception:  # noqa: BLE001 - a trace runs the network's own code
        return {}
    fields: dict[fx.Node, _Field] = {}
    named: dict[str, str] = {}
    for node in graph.nodes:
        before = [fields[parent] for parent in node.all_input_nodes]
        field = max(before, key=lambda each: each.size, default=_Field())
        if node.op == "call_module":
            field = _after_module(field, trunk.get_submodule(node.target))
            named[node.target] = _written(field)
        elif node.op in ("call_function", "call_method"):
            field = _after_function(field, _name(node.target), node.args, node.kwargs)
        fields[node] = field
    return named


def _after_module(field: _Field, module: nn.Module) -> _Field:
    if isinstance(module, _GLOBAL_MODULES):
        return _EVERYWHERE
    if isinstance(module, nn.Conv2d):
        return field.through(_pair(module.kernel_size), _pair(module.stride), _pair(module.dilation))
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return field.through(_pair(module.kernel_size), _pair(module.stride), (1, 1))
    return field


def _after_function(field: _Field, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> _Field:
    if name in _GLOBAL_FUNCTIONS:
        return _EVERYWHERE
    if name in _POOLING_FUNCTIONS:
        given = dict(zip(("input", "kernel_size", "stride"), arguments, strict=False)) | named
        kernel = _pair(given["kernel_size"])
        return field.through(kernel, _pair(given.get("stride") or kernel), (1, 1))
    return field


def _name(target: str | Callable[..., Any]) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401 - torch allows an int, a tuple or a list
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _written(field: _Field) -> str:
    height, width = field.size
    return WHOLE if height == float("inf") else f"{height:.0f} x {width:.0f}"
