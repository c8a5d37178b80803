"""Pictures of activation maximisation: the inputs that classes, filters and units respond to most."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.data.storage.disk_images import Images
from training.errors import RecipeError
from training.explain.examples import MAX_CLASSES, Floats
from training.explain.filters import strengths
from training.explain.ideal_inputs import Ascent, class_score, filter_score, ideal_inputs
from training.explain.picture import Picture, Tile, draw_grid, evenly
from training.explain.torch_layers import convolutions, images_at_once, layer_named, single_view
from training.networks.network import Network

_ACROSS = 5  # tiles of a row
_FILTER_LAYERS = 4
_FILTERS = 5  # of each layer of the overview
_MOST_FILTERS = 15  # of one layer
_SMALL = 64  # pixels of a side: below it steps are cheap
_STEPS_SMALL, _STEPS_LARGE = 192, 96

_RESPONSES = 16  # real images that filters must respond to
_SILENT = 0.25  # of the largest mean response: filters below it would stay grey

_METHOD = "Found by gradient ascent from an even image in the mean colour of real ones."


def draw_classes(network: Network, geometry: Geometry, labels: Sequence[str], real: Images | None) -> Picture:
    """Draw the ideal input of every class, of ten classes if there are more.

    Args:
        network: on the CPU, in evaluation mode.
        geometry: of its images.
        labels: K.
        real: images of the data set, for the mean colour; None: mid-grey.
    """
    shown = evenly(range(len(labels)), MAX_CLASSES)
    with single_view(network) as logits:
        images = _ideal_inputs(network, geometry, partial(class_score, logits), shown, real)
        with torch.no_grad():
            probabilities = torch.softmax(logits(torch.from_numpy(images)), dim=1).numpy()  # (N, K)
    tiles = [Tile(image, labels[label]) for image, label in zip(images, shown, strict=True)]
    recognised = int((probabilities.argmax(axis=1) == np.array(shown)).sum())
    caption = (
        f"The input that each class responds to most. {_METHOD} It exaggerates what raises the "
        "class, and is not what the class looks like. The network recognises "
        f"{recognised} of {len(shown)} of them as their class."
    )
    alt = f"Optimised inputs of the classes {', '.join(labels[label] for label in shown)}"
    return Picture("activations-classes", caption, alt, draw_grid(_rows(tiles)))


def draw_filter_inputs(network: Network, geometry: Geometry, real: Images | None) -> Picture:
    """Draw the ideal inputs of the strongest filters of up to four convolutions.

    Raises:
        RecipeError: the network has no convolution.
    """
    layers = evenly(list(convolutions(network).items()), _FILTER_LAYERS)
    if not layers:
        raise RecipeError("the network has no convolution whose filters could be shown: name a layer")
    rows = [_filter_tiles(network, geometry, layer, real, _FILTERS) for _, layer in layers]
    names = [name for name, _ in layers]
    caption = (
        f"The inputs that filters respond to most: a row for each of {len(rows)} "
        f"convolutions, from the first to the last, with {_chosen(real)}. {_METHOD}"
    )
    alt = f"Optimised inputs of filters of the layers {', '.join(name for name, _ in layers)}"
    return Picture("activations-filters", caption, alt, draw_grid(rows, names=names))


def draw_layer_inputs(network: Network, geometry: Geometry, name: str, real: Images | None) -> Picture:
    """Draw the ideal inputs of the strongest filters or units of one layer.

    Raises:
        RecipeError: there is no such layer, or it has no filters.
    """
    layer = layer_named(network, name)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise RecipeError(
            f"layer {name!r} is a {type(layer).__name__}, which has no filters: name a convolution or a "
            "dense layer"
        )
    tiles = _filter_tiles(network, geometry, layer, real, _MOST_FILTERS)
    caption = f"The inputs that {len(tiles)} filters of {name} respond to most: {_chosen(real)}. {_METHOD}"
    return Picture(
        "activations-filters", caption, f"Optimised inputs of layer {name}", draw_grid(_rows(tiles))
    )


def _filter_tiles(
    network: Network, geometry: Geometry, layer: nn.Module, real: Images | None, most: int
) -> list[Tile]:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError("a layer without weights was chosen. This is a bug.")
    rank = strengths(weight.detach().numpy())
    if real is not None:
        responses = filter_responses(network, layer, real)
        rank = rank * (responses >= _SILENT * responses.max())
    strongest = np.argsort(-rank, kind="stable")[:most].tolist()
    with single_view(network) as logits:
        images = _ideal_inputs(network, geometry, partial(filter_score, logits, layer), strongest, real)
    return [Tile(image, f"filter {place}") for image, place in zip(images, strongest, strict=True)]


def _ideal_inputs(
    network: Network,
    geometry: Geometry,
    score: Callable[[Sequence[int]], Callable[[Tensor], Tensor]],
    targets: Sequence[int],
    real: Images | None,
) -> Pixels:
    """Find the ideal input of each target, (N, H, W, C) uint8, as many at once as fit into memory."""
    count, ascent = images_at_once(network, geometry), _ascent(geometry, real)
    parts = [targets[start : start + count] for start in range(0, len(targets), count)]
    return np.concatenate([ideal_inputs(network, geometry, score(part), len(part), ascent) for part in parts])


def _chosen(real: Images | None) -> str:
    return "its strongest filters" if real is None else "the strongest filters that respond to real images"


@torch.no_grad()
def filter_responses(network: Network, layer: nn.Module, real: Images) -> Floats:
    """(M,): the mean positive output of each filter on real images. Silent filters would stay grey."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with single_view(network) as logits:
            logits(torch.from_numpy(np.asarray(real[:_RESPONSES])))
    finally:
        handle.remove()
    by_filter = seen[-1].clamp(min=0).mean(dim=0)  # (M, h, w) or (M,)
    return np.asarray(by_filter.reshape(len(by_filter), -1).mean(dim=1).numpy(), np.float32)


def _ascent(geometry: Geometry, real: Images | None) -> Ascent:
    if real is None:
        mean = np.full(geometry.channels, 0.5)
    else:
        mean = np.asarray(real[:256], np.float32).mean(axis=(0, 1, 2)) / 255  # (C,)
    large = max(geometry.height, geometry.width) > _SMALL
    return Ascent(_STEPS_LARGE if large else _STEPS_SMALL, tuple(map(float, mean)))


def _rows(tiles: Sequence[Tile]) -> list[list[Tile]]:
    return [list(tiles[start : start + _ACROSS]) for start in range(0, len(tiles), _ACROSS)]
