"""Wraps a foreign graph into a bundle's: uint8 NHWC in, calibrated probabilities and embedding out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.importing.batches import forget_shapes, free_batch, run_one_by_one
from serving.importing.graph import rename, tensor_names
from serving.importing.image_input import ImageInput, Normalization
from serving.importing.scores import Scores

Batch = Literal["dynamic", "made dynamic", "one by one"]

IMAGE, PROBABILITIES, EMBEDDING = "image", "probabilities", "embedding"

# Added to probabilities before their logarithm; far below float32's smallest difference from any of them.
_TINY = 1e-30
_MAX_PIXEL = 255.0


@dataclass(frozen=True, slots=True)
class Features:
    """The tensor that becomes the embedding, as one run of the file gave it."""

    name: str
    shape: tuple[int, ...]  # of one image
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """Length of the embedding: channels, if the features are maps."""
        return self.shape[0] if self.are_maps else int(np.prod(self.shape))

    @property
    def are_maps(self) -> bool:
        """Whether they are the maps before a convolution, (channels, height, width)."""
        return len(self.shape) == 3  # noqa: PLR2004


def wrap(
    model: onnx.ModelProto,
    *,
    image: ImageInput,
    normalization: Normalization,
    scores: Scores,
    scores_dtype: np.dtype[np.generic],
    features: Features,
    temperature: float,
    batch: Batch,
) -> onnx.ModelProto:
    """Return a bundle's graph around a foreign one.

    Args:
        model: the foreign model; not changed.
        image: its input.
        normalization: what its input takes.
        scores: its output.
        scores_dtype: of that output.
        features: the tensor that becomes the embedding.
        temperature: divides the logits.
        batch: as exported, with freed shapes, or each image alone.
    """
    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    graph = wrapped.graph
    names = _free_names(graph)
    rename(graph, names)
    data, result, penultimate = (names.get(each, each) for each in (image.name, scores.name, features.name))
    forget_shapes(graph)
    if batch == "made dynamic":
        free_batch(graph, data, image.batch or 1)
    constants = _Constants(graph)
    if batch == "one by one":
        types = {result: scores_dtype, penultimate: features.dtype}
        lengths = {result: scores.outputs, penultimate: int(np.prod(features.shape))}
        run_one_by_one(
            graph,
            image=helper.make_tensor_value_info(data, helper.np_dtype_to_tensor_dtype(image.dtype), None),
            image_shape=image.shape,
            outputs=[
                (
                    helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(types[name]), None),
                    length,
                )
                for name, length in lengths.items()
            ],
        )
        data, result, penultimate = f"{data}_batch", f"{result}_rows", f"{penultimate}_rows"
    around = [
        *_before(image, normalization, data, constants),
        *_copies(graph.node),
        *_features(features, penultimate, constants),
        *_probabilities(scores, scores_dtype, result, temperature, constants),
    ]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(around)
    graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", *_nhwc(image)]))
    for name, columns in ((PROBABILITIES, scores.classes), (EMBEDDING, features.size)):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns]))
    return wrapped


def _copies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Copy nodes out of a graph, which loses its own when it is emptied."""
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        yield copy


def _nhwc(image: ImageInput) -> tuple[int, int, int]:
    return image.height, image.width, image.channels


def _free_names(graph: onnx.GraphProto) -> dict[str, str]:
    """New names for tensors of the file that have the names of a bundle's."""
    return {
        name: f"imported_{name}"
        for name in tensor_names(graph)
        if name in {IMAGE, PROBABILITIES, EMBEDDING} or name.startswith("lenserve_")
    }


class _Constants:
    """Adds constants to a graph, under numbered names."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._added = 0

    def add(self, value: npt.NDArray[np.generic]) -> str:
        """Add a constant and return its name."""
        name = f"lenserve_constant_{self._added}"
        self._added += 1
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def _before(
    image: ImageInput, normalization: Normalization, result: str, constants: _Constants
) -> Iterator[onnx.NodeProto]:
    """From uint8 (N, H, W, C) to the file's input. Axes move while a pixel is one byte."""
    name = IMAGE
    if normalization.channel_order == "BGR":
        order = constants.add(np.array([2, 1, 0], np.int64))
        yield helper.make_node("Gather", [name, order], ["lenserve_bgr"], axis=3)
        name = "lenserve_bgr"  # (N, H, W, C) uint8
    if image.layout == "NCHW":
        yield helper.make_node("Transpose", [name], ["lenserve_nchw"], perm=[0, 3, 1, 2])
        name = "lenserve_nchw"  # (N, C, H, W) uint8
    if image.dtype == np.uint8:
        yield helper.make_node("Identity", [name], [result])
        return
    # Halves cannot hold 255 steps of a scaled pixel exactly, so they are rounded once, at the end.
    working = np.dtype(np.float32) if image.dtype == np.float16 else image.dtype
    axes = (image.channels, 1, 1) if image.layout == "NCHW" else (image.channels,)
    mean, std = np.array(normalization.mean), np.array(normalization.std)
    scale = constants.add((1 / (_MAX_PIXEL * std)).astype(working).reshape(axes))
    shift = constants.add((-mean / std).astype(working).reshape(axes))
    yield _cast(name, "lenserve_pixels", working)
    yield helper.make_node("Mul", ["lenserve_pixels", scale], ["lenserve_scaled"])
    if working == image.dtype:
        yield helper.make_node("Add", ["lenserve_scaled", shift], [result])
    else:
        yield helper.make_node("Add", ["lenserve_scaled", shift], ["lenserve_shifted"])
        yield _cast("lenserve_shifted", result, image.dtype)


def _features(features: Features, name: str, constants: _Constants) -> Iterator[onnx.NodeProto]:
    yield _cast(name, "lenserve_features", np.dtype(np.float32))
    name = "lenserve_features"
    if features.are_maps:
        shape = constants.add(np.array([-1, *features.shape], np.int64))
        yield helper.make_node("Reshape", [name, shape], ["lenserve_maps"])
        yield helper.make_node("GlobalAveragePool", ["lenserve_maps"], ["lenserve_pooled"])
        name = "lenserve_pooled"  # (N, D, 1, 1)
    flat = constants.add(np.array([-1, features.size], np.int64))
    yield helper.make_node("Reshape", [name, flat], [EMBEDDING])


def _probabilities(
    scores: Scores, dtype: np.dtype[np.generic], name: str, temperature: float, constants: _Constants
) -> Iterator[onnx.NodeProto]:
    yield _cast(name, "lenserve_scores", np.dtype(np.float32))
    flat = constants.add(np.array([-1, scores.outputs], np.int64))
    yield helper.make_node("Reshape", ["lenserve_scores", flat], ["lenserve_flat"])
    name = "lenserve_flat"  # (N, outputs) float32
    is_logits = scores.kind == "logits"
    if scores.outputs == 1:  # the second of two classes
        if is_logits:
            yield helper.make_node("Sigmoid", [name], ["lenserve_second"])
            name, is_logits = "lenserve_second", False
        one = constants.add(np.ones(1, np.float32))
        yield helper.make_node("Sub", [one, name], ["lenserve_first"])
        yield helper.make_node("Concat", ["lenserve_first", name], ["lenserve_both"], axis=1)
        name = "lenserve_both"  # (N, 2)
    if not is_logits and temperature == 1 and dtype == np.float32 and not scores.is_rounded:
        yield helper.make_node("Identity", [name], [PROBABILITIES])
        return
    if not is_logits:  # the logarithms of probabilities are logits; this also makes rounded ones sum to 1
        tiny = constants.add(np.array([_TINY], np.float32))
        yield helper.make_node("Add", [name, tiny], ["lenserve_positive"])
        yield helper.make_node("Log", ["lenserve_positive"], ["lenserve_logits"])
        name = "lenserve_logits"
    if temperature != 1:
        divisor = constants.add(np.array([temperature], np.float32))
        yield helper.make_node("Div", [name, divisor], ["lenserve_tempered"])
        name = "lenserve_tempered"
    yield helper.make_node("Softmax", [name], [PROBABILITIES], axis=1)


def _cast(name: str, result: str, dtype: np.dtype[np.generic]) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [result], to=helper.np_dtype_to_tensor_dtype(dtype))
