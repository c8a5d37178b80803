"""What every peer does with one request's bytes: raw uint8 pixels, or a photograph through Pillow and numpy.

Runs in the peers' own environments: needs ONNX Runtime, numpy and Pillow, and nothing of this project.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

Input = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

SIDE = 224
# ImageNet's mean and deviation of each channel, for pixels of 0..1, folded into one scale and one shift.
_SCALE = (1 / 255 / np.array([0.229, 0.224, 0.225])).astype(np.float32)  # (3,)
_SHIFT = (np.array([0.485, 0.456, 0.406]) / np.array([0.229, 0.224, 0.225])).astype(np.float32)  # (3,)


def open_session(model: Path | str) -> onnxruntime.InferenceSession:
    """One thread: the server has one core, and spinning would burn it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def preparation(session: onnxruntime.InferenceSession) -> Callable[[bytes], Input]:
    """What turns the bytes of one request into one input of this network."""
    graph_input = session.get_inputs()[0]
    if graph_input.type == "tensor(float)":
        return decode_photograph
    shape = graph_input.shape[1:]
    count = math.prod(shape)
    return lambda data: np.frombuffer(data, np.uint8, count).reshape(shape)  # (H, W, C) uint8


def decode_photograph(data: bytes) -> Input:
    """A JPEG file -> (3, SIDE, SIDE) float32: decode, resize with antialias, normalise in two passes."""
    with Image.open(io.BytesIO(data)) as image:
        resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)  # (SIDE, SIDE, 3), 0..255
    pixels = pixels * _SCALE  # (SIDE, SIDE, 3)
    pixels -= _SHIFT
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (3, SIDE, SIDE)
