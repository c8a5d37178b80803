"""Pictures of predictions: random test images with their labels, and the four quadrants of right and sure."""

import numpy as np

from training.data.storage.disk_images import Images
from training.explain.examples import Example
from training.explain.picture import Picture, Tile, draw_grid
from training.report.predictions import Predictions
from training.report.quadrants import SURE, quadrants

_SIDE = 5  # of the grid
_PER_QUADRANT = 6


def draw_predictions(images: Images, predictions: Predictions) -> Picture:
    """Draw 25 random images with their true and predicted labels and the confidence.

    Args:
        images: (N, H, W, C).
        predictions: for these N images.
    """
    chosen = np.random.default_rng(0).permutation(len(predictions))[: _SIDE**2]
    tiles = [prediction_tile(images, predictions, int(index)) for index in chosen]
    caption = (
        f"{len(tiles)} random test images, with their true label, the prediction and its probability. "
        f"{int((~predictions.correct[chosen]).sum())} of them are wrong (✗)."
    )
    rows = [tiles[start : start + _SIDE] for start in range(0, len(tiles), _SIDE)]
    return Picture("predictions", caption, f"{len(tiles)} test images with predictions", draw_grid(rows))


def draw_quadrants(images: Images, predictions: Predictions) -> Picture:
    """Draw examples that are right or wrong, and sure or unsure, with the number and mean loss of each.

    Args:
        images: (N, H, W, C).
        predictions: for these N images.
    """
    rows: list[list[Tile | None]] = []
    names, parts = [], []
    for quadrant in quadrants(predictions):
        count, name = len(quadrant.members), quadrant.name.lower()
        if quadrant.mean_loss is None:
            parts.append(f"no image is {name}")
            continue
        rows.append(
            [prediction_tile(images, predictions, int(index)) for index in quadrant.members[:_PER_QUADRANT]]
        )
        names.append(f"{name}: {count:,} images, mean loss {quadrant.mean_loss:.3f}")
        parts.append(f"{count:,} are {name} (mean loss {quadrant.mean_loss:.3f})")
    caption = (
        f"Of {len(predictions):,} test images {', '.join(parts)}. Sure is a probability of {SURE:.0%} or "
        "more; the surest are shown, of unsure ones the least sure. Wrong and sure: look at these labels "
        "first."
    )
    alt = "Test images in four rows: right or wrong, sure or unsure"
    return Picture("quadrants", caption, alt, draw_grid(rows, names=names))


def prediction_tile(images: Images, predictions: Predictions, index: int) -> Tile:
    """An image with its true label, its prediction and its probability; a cross marks mistakes."""
    example = Example(
        np.asarray(images[index]),
        int(predictions.predicted[index]),
        float(predictions.confidence[index]),
        int(predictions.truth[index]),
    )
    mark = "" if predictions.correct[index] else "✗ "
    return Tile(example.image, mark + example.describe(predictions.labels))
