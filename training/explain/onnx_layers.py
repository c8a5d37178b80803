"""Layers of a published ONNX file: their weights by the names of torch, and their outputs for an image."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from serving.bundle.images import Pixels
from training.errors import RecipeError

Floats = npt.NDArray[np.float32]

_ERRORS_ONLY = 3
_PREFIXES = ("network.", "extractor.network.", "trunk.")

# Of single nodes that apply to each map alone. The output after them is shown.
_FOLLOWED = frozenset(
    {
        "BatchNormalization",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Gelu",
        "Mish",
        "Tanh",
        "Sigmoid",
        "HardSwish",
        "Clip",
    }
)


@dataclass(frozen=True, slots=True)
class WeightedLayer:
    """A convolution or a dense layer."""

    name: str  # as `lenserve-train layers` prints it, without "trunk."
    weights: Floats  # (M, C, h, w) of a convolution, (units, inputs) of a dense layer
    output: str  # the tensor after batch norm and activation

    @property
    def is_convolution(self) -> bool:
        """Whether it has filters that move over the image."""
        return self.weights.ndim == 4  # noqa: PLR2004 - (M, C, h, w)


def read_layers(model_file: Path) -> list[WeightedLayer]:
    """Read all convolutions and dense layers of a bundle's file, in the order that they run."""
    graph = onnx.load(model_file).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers: dict[str, WeightedLayer] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in tensors:
            continue
        name = _short(node.input[1])
        if name not in layers:  # the views of an image share their weights
            weights = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
            transposed = node.op_type == "MatMul" or (
                node.op_type == "Gemm" and not _attribute(node, "transB")
            )
            layers[name] = WeightedLayer(
                name, weights.T if transposed else weights, _last_output(graph, node.output[0])
            )
    return list(layers.values())


def select_layer(layers: Sequence[WeightedLayer], name: str) -> WeightedLayer:
    """Find a layer by its name, with or without "trunk.".

    Raises:
        RecipeError: there is no such layer; the message suggests similar names.
    """
    known = {layer.name: layer for layer in layers}
    short = name.removeprefix("trunk.")
    if short not in known:
        nearest = difflib.get_close_matches(short, known, n=3, cutoff=0)
        raise RecipeError(
            f"the network has no layer {name!r} with weights: similar names are {', '.join(nearest)}"
        )
    return known[short]


def run_layers(model_file: Path, layers: Sequence[WeightedLayer], image: Pixels) -> Iterator[Floats]:
    """Compute the outputs of layers for one image, in ONNX Runtime.

    Args:
        model_file: of a bundle.
        layers: of this file.
        image: (H, W, C).

    Yields: for each layer (M, h, w) of a convolution, (units,) of a dense layer.
    """
    model = onnx.load(model_file)
    names = [layer.output for layer in layers]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for output in session.run(names, {"image": image[None]}):
        yield np.asarray(output[0], np.float32)


def _short(tensor: str) -> str:
    """network.trunk.conv1.weight -> conv1."""
    name = tensor.removesuffix(".weight")
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _last_output(graph: onnx.GraphProto, tensor: str) -> str:
    """The tensor after the batch norm and the activation that alone read this one."""
    while True:
        readers = [node for node in graph.node if tensor in node.input]
        if len(readers) != 1 or readers[0].op_type not in _FOLLOWED:
            return tensor
        tensor = readers[0].output[0]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
