"""Finds the largest weight or activation of a network, because FP16 ends at 65,504."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from serving.bundle.images import Pixels

FP16_MAX = 65504.0  # the largest finite value of IEEE 754 binary16

# All tensors are computed without fusion and reduced three times, which is slow. A few images are enough to
# find a range that is far too large; small batches keep memory use low.
RANGE_IMAGES = 64
_BATCH = 4

# ONNX does not specify NaN for ReduceMin and ReduceMax; a sum propagates NaN and infinity.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceL1")


@dataclass(frozen=True, slots=True)
class TensorMagnitude:
    """A tensor and its largest absolute value."""

    tensor: str
    value: float  # infinite if any value is NaN or infinite


def largest_magnitude(model_file: Path, images: Iterable[Pixels]) -> TensorMagnitude:
    """Find the tensor with the largest absolute value: a weight, or an activation for any of the images.

    Args:
        model_file: an exported file; it runs in FP32 on the CPU, without fused nodes.
        images: arrays (N, H, W, C) uint8 of any N.

    Raises:
        ValueError: there are no images.
    """
    return max([*_weights(model_file), *_activations(model_file, images)], key=lambda each: each.value)


def _weights(model_file: Path) -> list[TensorMagnitude]:
    graph = onnx.load(model_file).graph
    constants = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    tensors = [*((tensor.name, tensor) for tensor in graph.initializer), *constants]
    arrays = [
        (name, onnx.numpy_helper.to_array(tensor))
        for name, tensor in tensors
        if tensor.data_type == onnx.TensorProto.FLOAT
    ]
    return [TensorMagnitude(name, _magnitude(array)) for name, array in arrays if array.size]


def _activations(model_file: Path, images: Iterable[Pixels]) -> list[TensorMagnitude]:
    model = onnx.shape_inference.infer_shapes(onnx.load(model_file))
    names = _computed_float_tensors(model.graph)
    _add_reductions(model.graph, names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    largest = dict[str, float]()
    for part in images:
        for start in range(0, len(part), _BATCH):
            found = session.run(None, {"image": part[start : start + _BATCH]})
            rows = np.reshape(found, (len(names), len(_REDUCTIONS)))  # (tensors, reductions)
            largest = {
                # The sum only shows whether all values are finite.
                name: max(largest.get(name, 0.0), _magnitude(row[:2]) if np.isfinite(row).all() else np.inf)
                for name, row in zip(names, rows, strict=True)
            }
    if not largest:
        raise ValueError("there are no images to measure activations on")
    return [TensorMagnitude(name, value) for name, value in largest.items()]


def _computed_float_tensors(graph: onnx.GraphProto) -> list[str]:
    """The outputs of all nodes except constants, which count as weights."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    computed = (name for node in graph.node if node.op_type != "Constant" for name in node.output)
    return [name for name in computed if kinds.get(name) == onnx.TensorProto.FLOAT]


def _add_reductions(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Replace the graph's outputs with reductions of each tensor, so that no whole tensor is returned."""
    del graph.output[:]
    for name in names:
        for reduction in _REDUCTIONS:
            output = f"{name}/{reduction}"
            graph.node.append(onnx.helper.make_node(reduction, [name], [output], keepdims=0))
            graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))


def _magnitude(array: np.ndarray) -> float:
    value = float(np.abs(array).max())
    return value if np.isfinite(value) else float("inf")
