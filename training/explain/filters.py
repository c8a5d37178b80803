"""Pictures of filters: the first layer in colour, later ones as their strongest kernels, all by name."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.explain.onnx_layers import Floats, WeightedLayer
from training.explain.picture import Picture, Tile, draw_grid, evenly, signed

_ACROSS = 6  # tiles of a row
_MOST_LAYERS = 24  # of the overview
_MOST_FILTERS = 64  # of one layer
_MOST_KERNELS = 12  # filters and inputs of a later layer
_SIDE = 72  # pixels of a tile
_COLOURS = 3

_LEGEND = (
    "Red weights are positive, blue ones negative, white is zero; the first filters on RGB images are shown "
    "in colour, where grey is zero. The percentage is a filter's strength, its L2 norm relative to the "
    "strongest of its layer."
)


def draw_filters(layers: Sequence[WeightedLayer], geometry: Geometry) -> Picture:
    """Draw the strongest filters of every layer: one row per layer, at most 24 of them."""
    shown = evenly(layers, _MOST_LAYERS)
    rows, names = [], []
    for layer in shown:
        strength = strengths(layer.weights)
        order = np.argsort(-strength, kind="stable")[:_ACROSS]
        rows.append(_tiles(layer, geometry, strength, order))
        names.append(f"{layer.name}, {_shape(layer)}")
    some = "" if len(shown) == len(layers) else f" {len(shown)} of {len(layers)} layers are shown."
    caption = (
        f"The strongest filters or units of each layer, with their numbers. {_LEGEND} Of a filter with "
        "many inputs the kernel of the strongest input is shown; weights without positions (1 x 1 filters, "
        f"dense layers) are laid out as a block, one square per input.{some}"
    )
    alt = f"Filters of the layers {', '.join(layer.name for layer in shown)}"
    return Picture("filters", caption, alt, draw_grid(rows, names=names, side=_SIDE))


def draw_layer_filters(layer: WeightedLayer, geometry: Geometry) -> Picture:
    """Draw the filters of one layer; of a later convolution, the kernels of its strongest inputs."""
    strength = strengths(layer.weights)
    order = np.argsort(-strength, kind="stable")
    shape = layer.weights.shape
    if layer.is_convolution and shape[1] not in (1, _COLOURS) and max(shape[2:]) > 1:
        return _draw_kernels(layer, strength, order)
    tiles = _tiles(layer, geometry, strength, order[:_MOST_FILTERS])
    rows = [tiles[start : start + _ACROSS] for start in range(0, len(tiles), _ACROSS)]
    kind = "filters" if layer.is_convolution else "units"
    caption = f"The {len(tiles)} strongest of {shape[0]} {kind} of {layer.name}. {_LEGEND}"
    return Picture("filters", caption, f"Filters of layer {layer.name}", draw_grid(rows, side=_SIDE))


def _tiles(
    layer: WeightedLayer, geometry: Geometry, strength: Floats, order: npt.NDArray[np.intp]
) -> list[Tile]:
    kind = "filter" if layer.is_convolution else "unit"
    return [
        Tile(_filter(layer.weights[place], geometry), f"{kind} {place}\n{100 * strength[place]:.0f} %")
        for place in order
    ]


def _draw_kernels(layer: WeightedLayer, strength: Floats, order: npt.NDArray[np.intp]) -> Picture:
    by_input = np.sqrt(np.square(layer.weights).sum(axis=(0, 2, 3)))  # (C,)
    inputs = np.sort(np.argsort(-by_input, kind="stable")[:_MOST_KERNELS])
    filters = order[:_MOST_KERNELS]
    scale = float(np.abs(layer.weights[filters][:, inputs]).max())
    rows: list[list[Tile | None]] = [
        [Tile(signed(layer.weights[place, channel], scale)) for channel in inputs] for place in filters
    ]
    caption = (
        f"Kernels of {layer.name}: a row for each of its {len(filters)} strongest filters of "
        f"{len(strength)}, a column for each of its {len(inputs)} strongest inputs of "
        f"{layer.weights.shape[1]}. Red weights are positive, blue ones negative; the paler, the weaker, on "
        "one scale for all. The percentage is a filter's strength, its L2 norm relative to the strongest of "
        "the layer."
    )
    names = [f"filter {place}, {100 * strength[place]:.0f} %" for place in filters]
    png = draw_grid(rows, names=names, columns=[f"input {channel}" for channel in inputs], side=_SIDE)
    return Picture("filters", caption, f"Kernels of layer {layer.name}", png)


def _filter(weights: Floats, geometry: Geometry) -> Pixels:
    """One filter as an image: (C, h, w) or (inputs,) -> (h, w, 3)."""
    if weights.ndim == 1:
        pixels = geometry.channels, geometry.height, geometry.width
        if weights.size == math.prod(pixels):  # a dense layer on an image
            return _filter(weights.reshape(pixels), geometry)
        return signed(as_block(weights))
    if len(weights) == _COLOURS:
        return np.asarray(np.rint(127.5 + 127.5 * weights / np.abs(weights).max()), np.uint8).transpose(
            1, 2, 0
        )
    if max(weights.shape[1:]) == 1:
        return signed(as_block(weights[:, 0, 0]))
    strongest = int(np.square(weights).sum(axis=(1, 2)).argmax())
    return signed(weights[strongest])


def as_block(values: Floats) -> Floats:
    """(n,) -> (h, w), nearly square; the rest of the last row is zero."""
    width = math.ceil(math.sqrt(len(values)))
    height = math.ceil(len(values) / width)
    return np.pad(values, (0, height * width - len(values))).reshape(height, width)


def strengths(weights: Floats) -> Floats:
    """(M,): the L2 norm of each filter, relative to the largest."""
    norms = np.sqrt(np.square(weights.reshape(len(weights), -1)).sum(axis=1))  # (M,)
    return np.asarray(norms / (norms.max() or 1.0), np.float32)


def _shape(layer: WeightedLayer) -> str:
    shape = layer.weights.shape
    if layer.is_convolution:
        return f"{shape[0]} x {shape[1]} x {shape[2]} x {shape[3]}"
    return f"{shape[0]} x {shape[1]}"
