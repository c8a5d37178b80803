"""Reads an ONNX file of any program: its graph, weights, metadata and producer."""

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import inliner, version_converter
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from serving.errors import UnsupportedModel, UsageError
from serving.importing.graph import tensor_names
from serving.limited_files import open_regular, why_unreadable

_MIN_OPSET = 7  # ONNX Runtime's lowest (docs/Versioning.md)
_CONVERTED_OPSET = 11  # what older files are converted to
_MIN_IR_VERSION = 4  # since then, weights need not be listed as inputs
_MAX_FILE_BYTES = 2**31 - 1  # protobuf's limit, and so that of a bundle's one file

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_QUANTIZED_OPS = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
)

# Files that are often mistaken for an ONNX file: after how many bytes, which bytes; what to do.
_EXPORT = "export the model to ONNX"
_PAGE = "it is a web page: download the file itself"
_OTHER_KINDS = (
    (
        0,
        b"PK\x03\x04",
        f"it is a zip archive, such as torch's .pt or Keras's .keras: {_EXPORT}, or unpack it",
    ),
    (0, b"\x80\x02", f"it is a pickle, such as torch's old .pt: {_EXPORT}"),
    (0, b"\x89HDF", f"it is an HDF5 file, such as Keras's .h5: {_EXPORT}"),
    (0, b"\x1f\x8b", "it is compressed: unpack it with gunzip"),
    (0, b"<?xml", f"it is XML, such as OpenVINO's .xml: {_EXPORT}"),
    (4, b"TFL3", f"it is a file of TensorFlow Lite: {_EXPORT}"),
    (8, b'{"', f"it is a safetensors file, weights without a network: {_EXPORT}"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer: fetch the file with `git lfs pull`"),
    (0, b"<!DOCTYPE", _PAGE),
    (0, b"<html", _PAGE),
)
# What ONNX and ONNX Runtime write before the reason: kinds of errors, places and functions of their source.
_NOT_THE_REASON = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|Fatal error: "
    r"|^This is an invalid model\. "
    r"|/\S+\.(cc|h):\d+:? (\w+: Assertion `.*?` failed: |[^()]*\(.*?\) (?=[A-Z]))?"
)
_MAX_SEARCHED, _MAX_REASON = 2000, 200  # characters


@dataclass(frozen=True, slots=True)
class Source:
    """An ONNX file with all of its weights, local functions inlined. Weights are not among the inputs."""

    path: Path
    model: onnx.ModelProto
    files: Mapping[str, str]  # name -> SHA-256: the ONNX file, and files of its weights
    opset: int  # of the file; `model` may have a newer one
    producer: str

    @property
    def metadata(self) -> dict[str, str]:
        """What the producer wrote about the model, such as labels."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def parameters(self) -> int:
        """Number of floating point weights."""
        return sum(
            math.prod(tensor.dims) for tensor in self.model.graph.initializer if tensor.data_type in _FLOATS
        )

    @property
    def is_coarse(self) -> bool:
        """Whether it computes in FP16 or in integers, so that devices round it differently."""
        graph = self.model.graph
        return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer) or any(
            node.op_type in _QUANTIZED_OPS or node.op_type.startswith("QLinear") for node in graph.node
        )


def read_source(path: Path) -> Source:
    """Read an ONNX file and the files of its weights.

    Raises:
        UsageError: the file is missing.
        UnsupportedModel: it is damaged, is not ONNX, lacks its weights, or is older than ONNX Runtime reads.
    """
    content = _read(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise _not_onnx(path, content) from error
    if not model.graph.node or not model.opset_import:
        raise _not_onnx(path, content)
    files = {path.name: hashlib.sha256(content).hexdigest(), **_load_weights(path, model)}
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # RuntimeError, and whatever onnx's C++ raises
            raise UnsupportedModel(
                f"the functions of {path} cannot be inlined: {first_line(error)}; export it again"
            ) from error
    if not _has_text(model):
        raise _not_onnx(path, content)
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)
    model.ir_version = max(model.ir_version, _MIN_IR_VERSION)
    _remove_weights_from_inputs(model.graph)
    if opset < _MIN_OPSET:
        model = _convert(path, model, opset)
    return Source(path, model, files, opset, _producer(model))


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name the ONNX file to import{_example(path)}")
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; name the ONNX file to import") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {why_unreadable(error)}; name the ONNX file to import"
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise UnsupportedModel(
            f"{path} has more than {_MAX_FILE_BYTES:,} bytes, the limit of a bundle's file: "
            "export the model in FP16, or a smaller one"
        )
    return content


def _example(folder: Path) -> str:
    with suppress(OSError):
        if found := sorted(folder.glob("*.onnx")):
            return f", such as {found[0]}"
    return ""


def _not_onnx(path: Path, content: bytes) -> UnsupportedModel:
    found = next((what for at, start, what in _OTHER_KINDS if content.startswith(start, at)), "")
    reason = found or f"it is truncated, or not an ONNX file: copy it again, or {_EXPORT}"
    return UnsupportedModel(f"{path} ({len(content):,} bytes) cannot be read as ONNX: {reason}")


def _has_text(model: onnx.ModelProto) -> bool:
    """Whether names are text: of a damaged file, protobuf returns bytes that are not UTF-8 as they are."""
    metadata = (text for entry in model.metadata_props for text in (entry.key, entry.value))
    names = (*tensor_names(model.graph), model.producer_name, model.producer_version, *metadata)
    axes = (axis for value in model.graph.input for axis in value.type.tensor_type.shape.dim)
    return all(isinstance(text, str) for text in (*names, *(axis.dim_param for axis in axes)))


def _load_weights(path: Path, model: onnx.ModelProto) -> dict[str, str]:
    """Load weights from other files into the model; return their names and digests."""
    tensors = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    names = sorted(
        {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    )
    digests = {}
    for name in names:
        try:
            with open_regular(path.parent / name) as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UnsupportedModel(
                f"{path} keeps its weights in {name!r}, which cannot be read: {error.strerror}; "
                f"put that file into {path.parent}, or export the model as one file"
            ) from error
    total_bytes = model.ByteSize() + sum((path.parent / name).stat().st_size for name in names)
    if total_bytes > _MAX_FILE_BYTES:
        raise UnsupportedModel(
            f"{path} and its weights have {total_bytes:,} bytes, the limit is {_MAX_FILE_BYTES:,}: "
            "export the model in FP16, or a smaller one"
        )
    if names:
        try:
            load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # onnx raises its own kinds, and ValueError
            raise UnsupportedModel(
                f"the weights of {path} cannot be read from {', '.join(names)}: {first_line(error)}; "
                "copy these files again, or export the model as one file"
            ) from error
    return digests


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    graphs = [model.graph]
    found: list[onnx.TensorProto] = []
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            found += graph.initializer
            nodes += graph.node
        while nodes:
            for attribute in nodes.pop().attribute:
                found += [attribute.t, *attribute.tensors]
                graphs += [each for each in (attribute.g, *attribute.graphs) if each.node]
    return found


def _remove_weights_from_inputs(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)


def _convert(path: Path, model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        converted = version_converter.convert_version(model, _CONVERTED_OPSET)
    except Exception as error:  # the converter raises RuntimeError, ValueError and its own kinds
        raise UnsupportedModel(
            f"{path} is of ONNX opset {opset}, ONNX Runtime reads {_MIN_OPSET} and newer, and it cannot be "
            f"converted ({first_line(error)}): export it again with opset {_CONVERTED_OPSET} or newer"
        ) from error
    _remove_weights_from_inputs(converted.graph)
    return converted


def _producer(model: onnx.ModelProto) -> str:
    name = " ".join(filter(None, (model.producer_name.strip(), model.producer_version.strip())))
    return "".join(character for character in name if character.isprintable())[:100] or "unknown"


def first_line(error: Exception) -> str:
    """Return the reason in the first line of a library's message, which may be pages long."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = _NOT_THE_REASON.sub("", text[:_MAX_SEARCHED]).strip() or text
    return reason[:_MAX_REASON].rstrip(" .;")
