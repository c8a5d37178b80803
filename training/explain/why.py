"""Pictures of what a network looked at: each image beside its occlusion maps and Grad-CAM."""

from collections.abc import Sequence

import numpy as np

from training.errors import RecipeError
from training.explain.deletion import deletion_score
from training.explain.examples import Example
from training.explain.grad_cam import default_layer, grad_cam
from training.explain.occlusion import Floats, Patch, Predict, occlusion_maps
from training.explain.picture import Picture, Tile, draw_grid, overlay
from training.networks.network import Network

# The least probability in full colour: a sure network may lose a thousandth, which proves nothing.
_LEAST_SCALE = 0.05
_RANDOM_ORDERS = 3  # of the deletion test


def draw_why(
    name: str,
    examples: Sequence[Example],
    labels: Sequence[str],
    *,
    predict: Predict,
    patch: Patch,
    network: Network | None = None,
    layer: str | None = None,
) -> Picture:
    """Draw one row per image: the image, its occlusion maps, and Grad-CAM.

    Args:
        name: of the picture.
        examples: the images, at least one.
        labels: of the network.
        predict: runs the published file.
        patch: hides parts of an image.
        network: for Grad-CAM; None leaves it out.
        layer: of Grad-CAM; default: see `default_layer`.

    Raises:
        RecipeError: `layer` does not exist, or has no feature maps.
    """
    # Of two labels, one map is the other's negative.
    two = len(labels) > 2 and any(_truth(each) != each.predicted for each in examples)  # noqa: PLR2004
    maps = [occlusion_maps(predict, example.image, _targets(example, two=two), patch) for example in examples]
    cams, layer = _grad_cams(network, examples, layer)
    rows = [
        _row(example, labels, heat, None if cams is None else cams[place], two=two)
        for place, (example, heat) in enumerate(zip(examples, maps, strict=True))
    ]
    columns = ["image", "occlusion:\nprediction", *(["occlusion:\ntrue label"] if two else [])]
    if cams is not None:
        columns.append("Grad-CAM")
    hidden = f"{patch.side} x {patch.side} pixels"
    caption = (
        f"Occlusion: a patch of {hidden} in the mean colour hides each part of the image in turn. Red: "
        "hiding it lowers the probability of the label, so the network uses this part. Blue: hiding it "
        "raises the probability. The number is the largest fall, in points of 100."
        + _faithfulness(predict, examples, maps, patch)
        + (
            f" Grad-CAM: where the feature maps of layer {layer} speak for the predicted label (from "
            "gradients)."
            if cams is not None
            else ""
        )
    )
    shown = ", ".join(dict.fromkeys(example.describe(labels).replace("\n", " ") for example in examples))
    alt = f"Images with maps of the parts that their prediction depends on: {shown}"
    return Picture(name, caption, alt, draw_grid(rows, columns=columns))


def _row(
    example: Example, labels: Sequence[str], heat: Floats, cam: Floats | None, *, two: bool
) -> list[Tile | None]:
    tiles: list[Tile | None] = [Tile(example.image, example.describe(labels))]
    tiles += [_heat_tile(example, each) for each in heat]
    if two and len(heat) == 1:
        tiles.append(None)
    if cam is not None:
        nothing = "" if cam.any() else "no evidence"
        tiles.append(Tile(overlay(example.image, cam, float(cam.max()) or 1.0), nothing))
    return tiles


def _heat_tile(example: Example, heat: Floats) -> Tile:
    scale = max(_LEAST_SCALE, float(np.abs(heat).max()))
    return Tile(overlay(example.image, heat, scale), f"falls by {100 * max(0.0, float(heat.max())):.0f}")


def _targets(example: Example, *, two: bool) -> list[int]:
    return list(dict.fromkeys((example.predicted, *([_truth(example)] if two else []))))


def _truth(example: Example) -> int:
    return example.predicted if example.truth is None else example.truth


def _grad_cams(
    network: Network | None, examples: Sequence[Example], layer: str | None
) -> tuple[Floats | None, str | None]:
    if network is None:
        return None, None
    images = np.stack([example.image for example in examples])
    if layer is None:
        try:
            layer = default_layer(network, images[0])
        except RecipeError:
            return None, None  # a network without feature maps
    return grad_cam(network, images, [example.predicted for example in examples], layer), layer


def _faithfulness(predict: Predict, examples: Sequence[Example], maps: Sequence[Floats], patch: Patch) -> str:
    """The deletion test on these images, in one sentence."""
    random = np.random.default_rng(0)
    by_map, by_chance = [], []
    for example, heat in zip(examples, maps, strict=True):
        by_map.append(deletion_score(predict, example.image, example.predicted, heat[0], patch))
        by_chance += [
            deletion_score(
                predict,
                example.image,
                example.predicted,
                random.random(heat[0].shape, np.float32),
                patch,
            )
            for _ in range(_RANDOM_ORDERS)
        ]
    return (
        " Check: while these images are hidden square by square, the mean probability of the prediction is "
        f"{np.mean(by_map):.2f} if the reddest squares go first, and {np.mean(by_chance):.2f} in random "
        "order."
    )
