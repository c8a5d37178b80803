"""Finds the features before the last layer of a foreign classifier."""

import onnx

from serving.importing.graph import independent_of_inputs, producers

# Operators after the last layer: activations, biases, pooling, and those that only move values.
_AFTER = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Transpose"}
    | {"Relu", "Clip", "Dropout", "GlobalAveragePool", "AveragePool", "ReduceMean"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
_BIASES = frozenset({"Add", "Sub", "Mul", "Div"})
_LAYERS = frozenset({"Gemm", "MatMul", "Conv"})


def find_embedding(graph: onnx.GraphProto, output: str) -> str | None:
    """Return the tensor that the last layer multiplies by its weights; None if there is no such layer.

    The last layer is a Gemm, a MatMul or a convolution whose second input does not depend on the image.
    """
    found, fixed = producers(graph), independent_of_inputs(graph)
    name = output
    for _ in graph.node:  # not for ever: a damaged graph may be a circle
        node = found.get(name)
        if node is None or not node.input:
            return None
        if node.op_type in _LAYERS:
            data, weights = (*node.input, "")[:2]
            return data if weights in fixed and data not in fixed else None
        before = list(node.input[:1])
        if node.op_type in _BIASES:
            before = [each for each in node.input if each not in fixed]
        if node.op_type not in _AFTER | _BIASES or len(before) != 1:
            return None
        name = before[0]
    return None
