"""Pictures of feature maps: what each layer makes of one image, computed from the published ONNX file."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from serving.bundle.images import Pixels
from training.explain.filters import as_block
from training.explain.onnx_layers import Floats, WeightedLayer, run_layers
from training.explain.picture import Picture, Tile, draw_grid, evenly

_ACROSS = 6
_MOST_LAYERS = 24  # of the overview
_MOST_MAPS = 64  # of one layer
_SIDE = 72


def draw_features(model_file: Path, layers: Sequence[WeightedLayer], image: Pixels) -> Picture:
    """Draw the strongest maps of every layer for one image: one row per layer, at most 24 of them."""
    shown = evenly(layers, _MOST_LAYERS)
    rows: list[list[Tile | None]] = [[Tile(image, "the image")]]
    names = [f"input, {image.shape[0]} x {image.shape[1]}"]
    for layer, output in zip(shown, run_layers(model_file, shown, image), strict=True):
        rows.append(list(_tiles(output, _ACROSS)))
        names.append(f"{layer.name}, {_shape(output)}")
    some = "" if len(shown) == len(layers) else f" {len(shown)} of {len(layers)} layers are shown."
    caption = (
        "What each layer makes of one image, after its activation: the strongest feature maps with their "
        "numbers. Bright is high; each map has its own scale. The units of a dense layer are laid out as one "
        f"block, row by row.{some}"
    )
    alt = f"The outputs of the layers {', '.join(layer.name for layer in shown)} for one image"
    return Picture("features", caption, alt, draw_grid(rows, names=names, side=_SIDE))


def draw_layer_features(model_file: Path, layer: WeightedLayer, image: Pixels) -> Picture:
    """Draw up to 64 maps of one layer for one image."""
    (output,) = run_layers(model_file, [layer], image)
    tiles = [Tile(image, "the image"), *_tiles(output, _MOST_MAPS)]
    rows = [tiles[start : start + _ACROSS] for start in range(0, len(tiles), _ACROSS)]
    caption = (
        f"The {len(tiles) - 1} strongest outputs of {layer.name} ({_shape(output)}) for one image, after its "
        "activation. Bright is high; each map has its own scale."
    )
    return Picture(
        "features", caption, f"Feature maps of layer {layer.name} for one image", draw_grid(rows, side=_SIDE)
    )


def _tiles(output: Floats, most: int) -> list[Tile]:
    """The strongest maps of an output, (M, h, w) or (units,)."""
    if output.ndim == 1 or max(output.shape[1:]) == 1:
        return [Tile(_heat(as_block(output.reshape(-1))), f"{output.size} units")]
    order = np.argsort(-np.abs(output).mean(axis=(1, 2)), kind="stable")[:most]
    return [Tile(_heat(output[place]), f"map {place}") for place in order]


def _heat(values: Floats) -> Pixels:
    """(h, w) -> (h, w, 3), from black at the minimum to pale yellow at the maximum."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / ((high - low) or 1.0)
    return np.asarray(mpl.colormaps["magma"](scaled, bytes=True))[..., :3]


def _shape(output: Floats) -> str:
    return " x ".join(map(str, output.shape))
