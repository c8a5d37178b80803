"""How large the values in a network become: FP16 holds nothing beyond 65,504. Knows no recipe."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from serving.bundle.images import Pixels

FP16_MAX = 65504.0  # the largest finite value of IEEE 754 binary16

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Largest:
    """A tensor, and the absolute value that it reaches."""

    tensor: str
    value: float


def largest_value(model_file: Path, images: Iterable[Pixels]) -> Largest:
    """Find the tensor with the largest absolute value: a weight, or an activation on any of the images.

    Args:
        model_file: an exported file, which is computed in FP32 on the CPU, node by node as it was exported.
        images: arrays of (N, H, W, C) uint8, of any N.

    Raises:
        ValueError: there are no images.
    """
    return max([*_weights(model_file), *_activations(model_file, images)], key=lambda each: each.value)


def _weights(model_file: Path) -> list[Largest]:
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
    return [_largest(name, array) for name, array in arrays if array.size]


def _activations(model_file: Path, images: Iterable[Pixels]) -> list[Largest]:
    with TemporaryDirectory() as folder:
        # Beside each tensor it computes the minimum and the maximum, so no tensor is kept.
        calibrator = create_calibrator(
            model_file,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
            providers=["CPUExecutionProvider"],
        )
        for part in images:
            for start in range(0, len(part), _BATCH):
                calibrator.collect_data(_OneBatch(part[start : start + _BATCH]))
        ranges = calibrator.compute_data()
    if ranges is None:
        raise ValueError("there are no images to measure activations on")
    return [_largest(name, np.array(found.range_value)) for name, found in ranges.items()]


def _largest(name: str, array: np.ndarray) -> Largest:
    value = float(np.abs(array).max())
    return Largest(name, value if np.isfinite(value) else float("inf"))


class _OneBatch(CalibrationDataReader):  # type: ignore[misc]
    """One batch of images, as ONNX Runtime wants it."""

    def __init__(self, images: Pixels) -> None:
        self._left = [{"image": images}]

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the batch once, and then nothing."""
        return self._left.pop() if self._left else None
