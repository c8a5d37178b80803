"""Pictures of what came out: training images, mistakes, and the figures that a bundle's report keeps."""

import json
from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from serving.bundle import Bundle
from serving.errors import UsageError
from training.data.splits import Split
from training.data.storage.disk_images import Images
from training.explain.picture import Picture, Tile, draw_grid
from training.explain.predictions import prediction_tile
from training.learning.history import EpochRecord
from training.report.charts import png
from training.report.curves import draw_curves
from training.report.figures import draw_breakdown, draw_confusion
from training.report.metrics import METRICS_FILE, Metrics
from training.report.mistakes import varied_mistakes
from training.report.predictions import Predictions
from training.report.report import HISTORY_FILE

_REPORT = "report"
_SIDE = 5  # of the grid of training images
_ACROSS = 6  # mistakes of a row


def draw_images(train: Split, labels: Sequence[str]) -> Picture:
    """Draw 25 random training images with their labels.

    Args:
        train: the training split.
        labels: K.

    Raises:
        UsageError: the split has no image.
    """
    if not len(train):
        raise UsageError("images needs training images, and the data have none")
    chosen = np.random.default_rng(0).permutation(len(train))[: _SIDE**2].tolist()
    tiles = [Tile(np.asarray(train.images[index]), labels[train.labels[index]]) for index in chosen]
    return Picture(
        "images",
        f"{len(tiles)} of {len(train):,} training images with their labels, chosen at random, as the network "
        "receives them.",
        f"{len(tiles)} training images with their labels",
        draw_grid([tiles[start : start + _SIDE] for start in range(0, len(tiles), _SIDE)]),
    )


def draw_mistakes(images: Images, predictions: Predictions) -> Picture:
    """Draw up to 24 mistakes, every kind in turn, the most confident first.

    Args:
        images: (N, H, W, C).
        predictions: for these N images.

    Raises:
        UsageError: no prediction is wrong.
    """
    shown = varied_mistakes(predictions)
    wrong, count = int((~predictions.correct).sum()), len(predictions)
    if not shown:
        raise UsageError(f"there is no mistake to show: all {count:,} test images are right")
    tiles = [prediction_tile(images, predictions, index) for index in shown]
    return Picture(
        "mistakes",
        f"{len(shown)} of the {wrong:,} wrong predictions of {count:,} test images: every kind of error in "
        "turn, the most confident first.",
        f"{len(shown)} wrong predictions with their true labels",
        draw_grid([tiles[start : start + _ACROSS] for start in range(0, len(tiles), _ACROSS)]),
    )


def draw_confusion_matrix(bundle: Bundle) -> Picture:
    """Draw the confusion matrix of the test split, from the bundle's report."""
    scores = read_metrics(bundle).test
    return Picture(
        "confusion",
        "The confusion matrix of the test split: rows are true labels, columns predictions. Blue is right; "
        "the redder, the larger the share of the row, relative to the largest share of errors.",
        f"Confusion matrix of {len(scores.labels)} labels",
        png(draw_confusion(scores)),
    )


def draw_error_breakdown(bundle: Bundle) -> Picture:
    """Draw the errors of each label, from the bundle's report."""
    scores = read_metrics(bundle).test
    return Picture(
        "breakdown",
        "Wrong predictions of each true label, as a share of its test images; beside each bar their number, "
        "and what is predicted instead.",
        f"Errors by label, of {len(scores.labels)} labels",
        png(draw_breakdown(scores)),
    )


def draw_training_curves(bundle: Bundle) -> Picture:
    """Draw loss, accuracy and learning rate by epoch, from the bundle's report.

    Raises:
        UsageError: the bundle has no history.
    """
    metrics = read_metrics(bundle)
    path = bundle.folder / _REPORT / HISTORY_FILE
    try:
        history = [EpochRecord(**record) for record in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: it has the curves") from error
    if not history:
        raise UsageError(
            f"{bundle.model} version {bundle.version} has no curves: it was not trained by epochs"
        )
    return Picture(
        "curves",
        f"Loss, accuracy and learning rate of {len(history)} epochs; the dotted line is the published epoch, "
        f"{metrics.best_epoch}.",
        f"Curves of {len(history)} epochs, to a validation accuracy of {history[-1].validation_accuracy:.2%}",
        draw_curves(history, metrics.best_epoch),
    )


def read_metrics(bundle: Bundle) -> Metrics:
    """Read a bundle's metrics.json.

    Raises:
        UsageError: the file is missing, or of another version of Lenserve.
    """
    path = bundle.folder / _REPORT / METRICS_FILE
    try:
        return Metrics.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{path} is missing, or of another version of Lenserve: it has the figures"
        ) from error
