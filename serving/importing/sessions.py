"""Opens graphs in ONNX Runtime on the CPU, and runs images through those of a bundle's form."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from serving.bundle.images import Pixels
from serving.errors import UnsupportedModel
from serving.importing.graph import constants
from serving.importing.source import first_line
from serving.importing.wrap import EMBEDDING, IMAGE, PROBABILITIES

Floats = npt.NDArray[np.float32]

# Words of ONNX Runtime.
_NEWER_OPSET = re.compile(r"Opset (\d+) is under development.* support for domain (\S+) is till opset (\d+)")
_NEWER_FORMAT = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_UNKNOWN_OPERATOR = re.compile(
    r"([\w.]+:\w+)\(-?\d+\) is not a registered function/op|No Op registered for (\w+)"
)
_NO_IMPLEMENTATION = re.compile(r"Could not find an implementation for (\w+)\(\d+\)")
# Types of weights that only some operators of ONNX Runtime take on a CPU.
_RARE = {onnx.TensorProto.DOUBLE: "float64", onnx.TensorProto.BFLOAT16: "bfloat16"}
_FATAL_ONLY = 4  # ONNX Runtime's severity: failures come as exceptions, and some are expected
_MOST_AT_ONCE = 32  # images
_MOST_PIXELS_AT_ONCE = 32 * 224 * 224  # larger images run in smaller batches


def open_session(model: bytes | str) -> Any:  # noqa: ANN401 - ONNX Runtime ships no type information
    """Open a session on the CPU that does not spin while it waits.

    Args:
        model: serialized, or the path of a file.

    Raises:
        UnsupportedModel: ONNX Runtime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # With fallback, ONNX Runtime prints the failure to stdout and starts again.
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        rare = _rare_type(model) if isinstance(model, bytes) else ""
        raise UnsupportedModel(_why_not_loaded(str(error), first_line(error), rare)) from error


def _rare_type(model: bytes) -> str:
    """Return the type of weights that few operators take; or ""."""
    graph = onnx.ModelProto.FromString(model).graph
    types = {tensor.data_type for tensor in constants(graph).values() if tensor.dims}
    return next((name for kind, name in _RARE.items() if kind in types), "")


def _why_not_loaded(text: str, reason: str, rare: str) -> str:
    """Return why a model cannot be loaded, and what to do, by the words of ONNX Runtime.

    Args:
        text: all of its message.
        reason: of the first line.
        rare: type of weights that few operators take; "": there are none.
    """
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    if found := _NEWER_OPSET.search(text):
        return (
            f"the model has opset {found[1]} of {found[2]}, {runtime} reads up to {found[3]}: export it "
            "with that or an older one, or install a newer ONNX Runtime"
        )
    if found := _NEWER_FORMAT.search(text):
        return (
            f"the model has IR version {found[1]}, {runtime} reads up to {found[2]}: export it with an older "
            "version of onnx, or install a newer ONNX Runtime"
        )
    if found := _UNKNOWN_OPERATOR.search(text):
        return (
            f"the model has the operator {found[1] or found[2]}, which {runtime} does not have: "
            "export it with operators of ONNX alone"
        )
    if rare and (found := _NO_IMPLEMENTATION.search(text)):
        return (
            f"the model computes {found[1]} in {rare}, which {runtime} does not: export it in float32 "
            "(model.float())"
        )
    return f"{runtime} cannot load the model: {reason}; export it again, with operators of ONNX alone"


def batch_size(height: int, width: int) -> int:
    """Return how many images of a size run at once."""
    return max(1, min(_MOST_AT_ONCE, _MOST_PIXELS_AT_ONCE // (height * width)))


def run_images(session: Any, images: Pixels, at_once: int) -> tuple[Floats, Floats]:  # noqa: ANN401 - ONNX Runtime ships no type information
    """Run images in batches: probabilities (N, K) and embeddings (N, D)."""
    parts = [
        session.run([PROBABILITIES, EMBEDDING], {IMAGE: images[start : start + at_once]})
        for start in range(0, len(images), at_once)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
