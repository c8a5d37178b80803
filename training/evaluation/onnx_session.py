"""Runs an exported file in ONNX Runtime on the CPU, like a server without a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from training.data.storage.disk_images import Images

_ERRORS_ONLY = 3
_MOST_AT_ONCE = 64  # images; larger batches are no faster
_MOST_PIXELS_AT_ONCE = 16 * 128 * 128  # 512 feature maps of this size, as in the widest network, take 0.5 GB

Floats = npt.NDArray[np.float32]


def open_session(model_file: Path) -> Any:  # noqa: ANN401 - ONNX Runtime ships no type information
    """Open a session on the CPU that does not spin while it waits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # leave the cores to other processes
    return onnxruntime.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])


def run(session: Any, images: Images, batch_size: int | None = None) -> tuple[Floats, Floats]:  # noqa: ANN401 - as above
    """Run all images in batches.

    Args:
        session: session of a file with a bundle's inputs and outputs.
        images: (N, H, W, C) uint8, N >= 1.
        batch_size: the last batch may be smaller; None: as many as fit into memory with the widest network.

    Returns: probabilities (N, K) and embeddings (N, D), float32.
    """
    if batch_size is None:
        pixels = images.shape[1] * images.shape[2]
        batch_size = max(1, min(_MOST_AT_ONCE, _MOST_PIXELS_AT_ONCE // pixels))
    outputs = [
        session.run(["probabilities", "embedding"], {"image": images[start : start + batch_size]})
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate([output[0] for output in outputs]), np.concatenate(
        [output[1] for output in outputs]
    )
