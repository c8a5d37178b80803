"""Exports a network as one self-contained ONNX file: uint8 NHWC in, probabilities and embedding out."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from serving.bundle import Geometry
from training.errors import ExportError
from training.export.fold_scaling import fold_scaling
from training.networks import Network

# The default of torch's exporter. Pinned, so that a new torch does not silently require a newer server.
OPSET = 20

_EXAMPLE_BATCH = 2  # the exporter would treat a batch of 1 as constant
_INPUT = "image"
_OUTPUTS = ("probabilities", "embedding")


class Classifier(nn.Module):
    """The published graph: a network, temperature and softmax."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) uint8 -> calibrated probabilities (N, K) and embedding (N, D), float32."""
        logits, embedding = self.network(image)
        return torch.softmax(logits / self.temperature, dim=1), embedding


def export(classifier: Classifier, geometry: Geometry, path: Path) -> None:
    """Export to ONNX, reproducibly: the same weights give the same bytes on every machine.

    Args:
        classifier: a classifier on the CPU, in evaluation mode.
        geometry: geometry of the input images.
        path: file to write; an existing file is replaced.

    Raises:
        ExportError: the graph does not meet the requirements of a bundle.
    """
    shape = (_EXAMPLE_BATCH, geometry.height, geometry.width, geometry.channels)
    with _quiet():
        program = torch.onnx.export(
            classifier.eval(),
            (torch.zeros(shape, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[_INPUT],
            output_names=list(_OUTPUTS),
            dynamic_shapes={_INPUT: {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch's ONNX exporter returned nothing. This is a bug.")
    model = program.model_proto
    fold_scaling(model)
    strip_metadata(model)
    check_graph(model, shape)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its warnings are about internals and change with each version.

    Nothing is lost, because the exported file is checked and compared with torch afterwards.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove source paths of this machine, and operator sets that no node uses."""
    _clear_metadata(model)
    used = {node.domain for node in _all_nodes(model)}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of its functions, and of subgraphs in attributes."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)


def _clear_metadata(message: Message) -> None:
    """Clear all metadata and doc strings: the exporter stores source paths in them."""
    for field in ("metadata_props", "doc_string"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for part in [value] if isinstance(value, Message) else value:
            _clear_metadata(part)


def check_graph(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Check inputs, outputs, shapes and operator sets against the requirements of a bundle.

    Args:
        model: model after `strip_metadata`.
        shape: (N, H, W, C) of the input images; N is ignored.

    Raises:
        ExportError: the graph is invalid or does not meet the requirements.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is invalid: {error}") from error
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(
            f"the exported graph needs operator sets {opsets}; only ONNX's own, version {OPSET}, is allowed"
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError("the exported graph stores weights in another file; a bundle needs one file")
    found = [(value.name, _dimensions(value)[:1]) for value in (*model.graph.input, *model.graph.output)]
    expected = [(name, ["batch"]) for name in (_INPUT, *_OUTPUTS)]
    if found != expected or _dimensions(model.graph.input[0])[1:] != list(shape[1:]):
        raise ExportError(f"the exported graph has {found}, expected {expected} and images {list(shape[1:])}")


def _dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
