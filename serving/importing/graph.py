"""Questions about an ONNX graph, and small changes of it. Runs nothing."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

# Operators that keep every value, so that what is before them is what is after them in another shape or type.
PASSING = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout"}
    | {"QuantizeLinear", "DequantizeLinear"}
)

Array = npt.NDArray[np.generic]


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Tensor name -> the node that computes it."""
    return {name: node for node in graph.node for name in node.output}


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Tensor name -> its value, of weights and of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            values = [value for value in map(_tensor, node.attribute) if value is not None]
            found.update(zip(node.output, values, strict=False))  # none, or one
    return found


def _tensor(attribute: onnx.AttributeProto) -> onnx.TensorProto | None:
    """Return the value of a Constant's attribute; None if it is sparse or text."""
    match attribute.name:
        case "value":
            return attribute.t
        case "value_int" | "value_float":
            return numpy_helper.from_array(
                np.asarray(attribute.i if "int" in attribute.name else attribute.f)
            )
        case "value_ints" | "value_floats":
            values = attribute.ints if "int" in attribute.name else attribute.floats
            return numpy_helper.from_array(np.asarray(list(values)))
    return None


def independent_of_inputs(graph: onnx.GraphProto, *, also: Iterable[str] = ()) -> set[str]:
    """Return the tensors that are the same for every image: weights, and what is computed from them.

    Args:
        graph: not changed.
        also: tensors that count as such.
    """
    fixed = {*constants(graph), *also}
    for node in graph.node:
        if all(each in fixed for each in node.input if each) and not any(
            each.g.node for each in node.attribute
        ):
            fixed.update(node.output)
    return fixed


def in_training_mode(graph: onnx.GraphProto) -> str:
    """Return the operator that was exported in training mode, Dropout or BatchNormalization; or ""."""
    values = constants(graph)
    for node in graph.node:
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:  # noqa: PLR2004 - training_mode
            switch = values.get(node.input[2])
            if switch is None or value_of(switch).any():
                return node.op_type
        if node.op_type == "BatchNormalization" and any(
            attribute.name == "training_mode" and attribute.i for attribute in node.attribute
        ):
            return node.op_type
    return ""


def reachable(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Return the names of all tensors that are computed from a tensor, and its own."""
    found = {tensor}
    for node in graph.node:  # ONNX requires that nodes are sorted
        if not found.isdisjoint(_inputs(node)):
            found.update(node.output)
    return found


def _inputs(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _inputs(each)


def value_of(tensor: onnx.TensorProto) -> Array:
    """Return a constant's value."""
    return numpy_helper.to_array(tensor)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors, also where subgraphs use them."""
    for node in graph.node:
        for container in (node.input, node.output):
            for at, name in enumerate(container):
                if name in names:
                    container[at] = names[name]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename(inner, names)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all tensors of a graph and of its subgraphs."""
    found = {tensor.name for tensor in graph.initializer}
    found |= {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        found.update(node.input, node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= tensor_names(inner)
    return found
