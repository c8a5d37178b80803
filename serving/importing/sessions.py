"""Opens graphs in ONNX Runtime on the CPU, and runs images through those of a bundle's form."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from serving.bundle.images import Pixels
from serving.errors import UnsupportedModel
from serving.importing.source import first_line
from serving.importing.wrap import EMBEDDING, IMAGE, PROBABILITIES

Floats = npt.NDArray[np.float32]

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
        raise UnsupportedModel(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the model: {first_line(error)}; "
            "export it with opset 11 to 22, and only with operators of ONNX"
        ) from error


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
