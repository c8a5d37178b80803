"""Folds pixel scaling into the first convolution of an exported graph.

Before the first convolution, a network divides pixels by 255, subtracts a mean and divides by a standard
deviation: three passes over its largest tensor. Together they compute a * (x - shift), so filters multiplied
by `a` give the same result on x - shift. Zero padding is unchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

_Values = npt.NDArray[np.float64]
_AffineUpdate = Callable[[_Values, _Values, _Values], tuple[_Values, _Values]]

# The new a and b of a * x + b, after an operator with a constant.
_AFFINE_OPS: Mapping[str, _AffineUpdate] = {
    "Div": lambda a, b, constant: (a / constant, b / constant),
    "Mul": lambda a, b, constant: (a * constant, b * constant),
    "Sub": lambda a, b, constant: (a, b - constant),
    "Add": lambda a, b, constant: (a, b + constant),
}
_SHIFT = "pixel_shift"


@dataclass(frozen=True, slots=True)
class _ScalingChain:
    """The operators between the pixels and the first convolution."""

    steps: list[NodeProto]
    pixels: str
    convolution: NodeProto


def fold_scaling(model: ModelProto) -> None:
    """Fold in place, if the graph begins with a chain of constant operators that feeds only the convolution.

    Other graphs, such as those that average several views, are not changed.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scaling = _find_chain(graph, constants)
    if scaling is None:
        return
    filters = constants[scaling.convolution.input[1]]  # (M, C, h, w) float32
    a, b = _compose(scaling.steps, constants, channels=filters.shape[1])  # (C,) each
    if not np.all(np.isfinite(a) & (a != 0)):
        return
    shift = -b / a  # (C,)
    _replace_initializer(graph, scaling.convolution.input[1], filters * a[:, None, None])
    _replace_chain(graph, scaling, shift)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _find_chain(graph: GraphProto, constants: Mapping[str, npt.NDArray[np.generic]]) -> _ScalingChain | None:
    convolution = next((node for node in graph.node if node.op_type == "Conv"), None)
    if convolution is None or _is_shared(graph, convolution.input[1]) or _groups(convolution) != 1:
        return None
    makers = {output: node for node in graph.node for output in node.output}
    steps: list[NodeProto] = []
    name = convolution.input[0]
    while (node := makers.get(name)) is not None and node.op_type in _AFFINE_OPS:
        if _is_shared(graph, name) or node.input[1] not in constants:
            return None
        steps.insert(0, node)
        name = node.input[0]
    return _ScalingChain(steps, name, convolution) if steps else None


def _compose(
    steps: list[NodeProto], constants: Mapping[str, npt.NDArray[np.generic]], *, channels: int
) -> tuple[_Values, _Values]:
    a, b = np.ones(channels), np.zeros(channels)
    for step in steps:
        constant = constants[step.input[1]].astype(np.float64)  # () or (C, 1, 1)
        a, b = _AFFINE_OPS[step.op_type](a, b, np.broadcast_to(constant.reshape(-1), channels))
    return a, b


def _replace_chain(graph: GraphProto, scaling: _ScalingChain, shift: _Values) -> None:
    place = list(graph.node).index(scaling.steps[0])
    for step in scaling.steps:
        graph.node.remove(step)
    if not shift.any():
        scaling.convolution.input[0] = scaling.pixels
        return
    graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32)[:, None, None], _SHIFT))
    subtract = helper.make_node("Sub", [scaling.pixels, _SHIFT], [scaling.convolution.input[0]], name=_SHIFT)
    graph.node.insert(place, subtract)


def _replace_initializer(graph: GraphProto, name: str, values: _Values) -> None:
    for tensor in graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def _is_shared(graph: GraphProto, name: str) -> bool:
    return sum(list(node.input).count(name) for node in graph.node) != 1


def _groups(convolution: NodeProto) -> int:
    return next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)
