"""The input of a foreign model: its type, layout and size, and how pixels become its values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from serving.bundle.images import Pixels
from serving.errors import UnsupportedModel, UsageError

Layout = Literal["NCHW", "NHWC"]
ChannelOrder = Literal["RGB", "BGR", "grey"]

_TYPES: Mapping[int, np.dtype[np.generic]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
    onnx.TensorProto.UINT8: np.dtype(np.uint8),
}
_CHANNELS = (1, 3)
MAX_SIDE = 4096  # pixels, as of the manifest's geometry
_IMAGE_AXES = 4
_CHANNEL_AXIS = {"NCHW": 1, "NHWC": 3}
# Operators between an image and the first layer: types and normalisation.
_BEFORE_LAYERS = frozenset(
    {"Identity", "Cast", "Sub", "Div", "Mul", "Add", "QuantizeLinear", "DequantizeLinear"}
)
_EXPECTED = "an image classifier takes (batch, channels, height, width) or (batch, height, width, channels)"
# Number of axes of another input -> what it is, and what to do.
_OTHER_INPUTS = {
    2: "2 axes are a list of features: export the network from its first layer that takes an image",
    3: "3 axes are one image without a batch: export it with a batch axis, for an example of shape "
    "(1, channels, height, width)",
    5: "5 axes are videos or volumes: import a network for single images",
}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input tensor of a foreign model, completed by what the operator says."""

    name: str
    dtype: np.dtype[np.generic]  # float32, float16, float64 or uint8
    layout: Layout
    height: int
    width: int
    channels: int  # 1 or 3
    batch: int | None  # as exported; None: any

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image in the layout of the tensor."""
        if self.layout == "NCHW":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def __str__(self) -> str:
        batch = "any batch" if self.batch is None else f"batch {self.batch}"
        return f"{self.dtype} {self.layout} {' x '.join(map(str, self.shape))}, {batch}"


@dataclass(frozen=True, slots=True)
class Normalization:
    """How pixels in 0..1 become values: (pixel - mean) / std, for each channel in the order of the file.

    A uint8 input takes the pixels themselves.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: ChannelOrder

    def __str__(self) -> str:
        if not self.mean:
            return f"{self.channel_order} in 0..255, without normalisation"
        return f"{self.channel_order} in 0..1, with mean {_listed(self.mean)} and std {_listed(self.std)}"


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))


def describe_input(
    graph: onnx.GraphProto, *, layout: Layout | None = None, size: tuple[int, int] | None = None
) -> ImageInput:
    """Read what the graph says about its input.

    Args:
        graph: without weights among its inputs.
        layout: for shapes that have two readings.
        size: (height, width) in pixels, for graphs that take any size.

    Raises:
        UnsupportedModel: the input is not one image.
        UsageError: the file leaves layout or size open, or contradicts the argument.
    """
    value = _only_input(graph)
    dtype = _TYPES.get(value.type.tensor_type.elem_type)
    if dtype is None:
        number = value.type.tensor_type.elem_type
        known = number in onnx.TensorProto.DataType.values()
        kind = onnx.TensorProto.DataType.Name(number).lower() if known else f"of unknown type {number}"
        raise UnsupportedModel(
            f"input {value.name!r} is {kind}; an image is float, float16, double or uint8: export the model "
            "with an input of one of these types"
        )
    dims = _dimensions(value)
    found = _find_layout(value.name, dims, layout or _layout_of_first_layer(graph, dims))
    channels, height, width = dims[1:] if found == "NCHW" else (dims[3], dims[1], dims[2])
    if size is not None and max(size) > MAX_SIDE:
        raise UsageError(
            f"--size {size[0]}x{size[1]}: the limit of a side is {MAX_SIDE} pixels: give the size that the "
            "model was trained on, such as --size 224"
        )
    height, width = _complete_size(value.name, (height, width), size)
    if max(height, width) > MAX_SIDE:
        raise UnsupportedModel(
            f"input {value.name!r} has {height} x {width} pixels, the limit of a side is {MAX_SIDE}: "
            "export it for smaller images"
        )
    return ImageInput(value.name, dtype, found, height, width, channels or _CHANNELS[-1], dims[0])


def _layout_of_first_layer(graph: onnx.GraphProto, dims: list[int | None]) -> Layout | None:
    """Return the layout that the first convolution needs, if the shape leaves it open; None: not found.

    ONNX's convolutions are NCHW: an NHWC image is transposed before them.
    """
    possible = [each for each in ("NCHW", "NHWC") if dims[_CHANNEL_AXIS[each]] in (*_CHANNELS, None)]
    if len(possible) < len(_CHANNEL_AXIS):
        return None
    reached = {graph.input[0].name}
    for node in graph.node:  # ONNX requires that nodes are sorted
        if reached.isdisjoint(node.input[:1]):
            continue
        if node.op_type == "Conv":
            return "NCHW"
        if node.op_type == "Transpose":
            perm = next((list(each.ints) for each in node.attribute if each.name == "perm"), [])
            return "NHWC" if perm == [0, 3, 1, 2] else None
        if node.op_type in _BEFORE_LAYERS:
            reached.update(node.output)
    return None


def _only_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    if len(graph.input) != 1:
        names = ", ".join(repr(value.name) for value in graph.input) or "none"
        raise UnsupportedModel(
            f"the model has {len(graph.input)} inputs ({names}); a classifier of images has one: "
            "export it with the image as its only input"
        )
    return graph.input[0]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    tensor = value.type.tensor_type
    dims = [axis.dim_value if axis.dim_value > 0 else None for axis in tensor.shape.dim]
    if len(dims) != _IMAGE_AXES or not tensor.HasField("shape"):
        shown = [axis.dim_param or axis.dim_value or "?" for axis in tensor.shape.dim]
        remedy = _OTHER_INPUTS.get(len(dims), "export a network whose input is such a batch of images")
        raise UnsupportedModel(f"input {value.name!r} has shape {shown}; {_EXPECTED}; {remedy}")
    return dims


def _find_layout(name: str, dims: list[int | None], wanted: Layout | None) -> Layout:
    shown = [dim or "?" for dim in dims]
    fitting: list[Layout] = [each for each in ("NCHW", "NHWC") if dims[_CHANNEL_AXIS[each]] in _CHANNELS]
    possible = fitting or [each for each in ("NCHW", "NHWC") if dims[_CHANNEL_AXIS[each]] is None]
    if wanted is not None and wanted in (*possible, *_open(dims)):
        return wanted
    if wanted is not None and possible:
        raise UsageError(
            f"--layout {wanted}: input {name!r} has shape {shown}, which is {possible[0]}: leave --layout out"
        )
    if not possible:
        raise UnsupportedModel(
            f"input {name!r} has shape {shown}, not NCHW or NHWC with 1 or 3 channels: "
            "export a classifier of grey or RGB images"
        )
    if len(possible) > 1:
        raise UsageError(
            f"input {name!r} has shape {shown}, which can be NCHW (torch) or NHWC (Keras): "
            "add --layout NCHW or --layout NHWC"
        )
    return possible[0]


def _open(dims: list[int | None]) -> list[Layout]:
    return [each for each in ("NCHW", "NHWC") if dims[_CHANNEL_AXIS[each]] is None]


def _complete_size(
    name: str, found: tuple[int | None, int | None], wanted: tuple[int, int] | None
) -> tuple[int, int]:
    if wanted is None:
        if None in found:
            raise UsageError(
                f"input {name!r} takes images of any size: give the one that it was trained on, such as "
                "--size 224"
            )
        wanted = found[0] or 0, found[1] or 0
    if any(side not in (None, given) for side, given in zip(found, wanted, strict=True)):
        shown = " x ".join(str(side or "any") for side in found)
        raise UsageError(
            f"--size {wanted[0]}x{wanted[1]}: the file takes {shown} pixels (height x width): leave it out"
        )
    return wanted


def to_tensor(images: Pixels, tensor: ImageInput, normalization: Normalization) -> npt.NDArray[np.generic]:
    """Return what the file takes, computed by numpy in float64: the reference for the graph that does it.

    Args:
        images: (N, H, W, C) uint8, RGB or grey.
        tensor: the file's input.
        normalization: applied unless the input is uint8.
    """
    ordered = images[..., ::-1] if normalization.channel_order == "BGR" else images  # (N, H, W, C)
    if tensor.dtype != np.uint8:
        scaled = (ordered / 255.0 - np.array(normalization.mean)) / np.array(normalization.std)
        ordered = scaled.astype(tensor.dtype)  # (N, H, W, C)
    return np.ascontiguousarray(ordered.transpose(0, 3, 1, 2) if tensor.layout == "NCHW" else ordered)
