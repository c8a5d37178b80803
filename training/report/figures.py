"""Draws the report's figures: learning curves, confusion matrix, augmented examples, few-shot curve."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from training.evaluation.scores import Scores
from training.few_shot.curve import CurvePoint
from training.learning.history import EpochRecord

_DOTS_PER_INCH = 120
_MAX_NAMED_LABELS = 60  # the names of more labels would overlap
_MAX_LABELS_WITH_COUNTS = 20  # the counts of more labels would be too small to read


def draw_history(
    history: Sequence[EpochRecord], best_epoch: int, *, validation_chose: bool | None = None
) -> Figure:
    """Draw losses and validation accuracy by epoch, with the published epoch marked."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    losses.plot(epochs, [record.train_loss for record in history], label="training", color="#8aa4c8")
    losses.plot(epochs, [record.validation_loss for record in history], label="validation", color="#1f4e8c")
    losses.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", title="loss")
    accuracy.plot(epochs, [100 * record.validation_accuracy for record in history], color="#1f4e8c")
    accuracy.set(xlabel="epoch", ylabel="accuracy in %", title="validation accuracy")
    chosen = ", chosen by validation loss" if validation_chose else ""
    of_head = sum(record.head_only for record in history)
    for axes in (losses, accuracy):
        if 0 < of_head < len(history):
            axes.axvspan(0.5, of_head + 0.5, color="#8aa4c8", alpha=0.2, label="head only")
        axes.axvline(
            best_epoch, color="#2a9d5c", linestyle=":", label=f"published epoch, {best_epoch}{chosen}"
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    losses.legend(frameon=False, fontsize=8)
    return figure


def draw_augmentation(examples: npt.NDArray[np.uint8]) -> Figure:
    """Draw training images, each next to its augmented versions in several epochs.

    Args:
        examples: (rows, columns, H, W, C) uint8; the first of each row is the original image.
    """
    rows, columns = examples.shape[:2]
    figure = Figure(figsize=(columns, rows), layout="constrained")
    for axes, image in zip(
        figure.subplots(rows, columns, squeeze=False).flat,
        examples.reshape(rows * columns, *examples.shape[2:]),
        strict=True,
    ):
        grey = image.shape[2] == 1
        axes.imshow(image[:, :, 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255)
        axes.set_axis_off()
    figure.axes[0].set_title("original", fontsize=8)
    figure.axes[1].set_title("augmented", fontsize=8)
    return figure


def draw_curve(points: Sequence[CurvePoint]) -> Figure:
    """Draw mean accuracy by number of examples, with its 95 % interval and the range of the subsets."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(points))
    worst, best = [100 * point.worst for point in points], [100 * point.best for point in points]
    axes.fill_between(places, worst, best, color="#8aa4c8", alpha=0.25, label="worst to best subset")
    below = [100 * (point.mean - point.low) for point in points]
    above = [100 * (point.high - point.mean) for point in points]
    means = [100 * point.mean for point in points]
    axes.errorbar(places, means, (below, above), color="#1f4e8c", marker="o", capsize=4, label="mean, 95 %")
    axes.set_xticks(places, [point.examples() for point in points])
    axes.set(xlabel="training images per label", ylabel="accuracy in %", title="few-shot accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def draw_confusion(scores: Scores) -> Figure:
    """Draw the confusion matrix: rows are true labels, columns predictions; colour is the row's fraction."""
    counts = np.array(scores.confusion)  # (K, K)
    # Matplotlib would render text between two dollar signs as mathematics.
    labels = [entry.label.replace("$", r"\$") for entry in scores.labels]
    named = labels if len(labels) <= _MAX_NAMED_LABELS else []
    side = min(14.0, max(4.0, 0.45 * len(labels) + 1.5))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="confusion matrix, test split")
    axes.set_xticks(range(len(named)), named, rotation=90 if max(map(len, labels)) > 3 else 0)  # noqa: PLR2004
    axes.set_yticks(range(len(named)), named)
    if len(labels) <= _MAX_LABELS_WITH_COUNTS:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"  # noqa: PLR2004 - half of the scale
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8
            )
    return figure


def png(figure: Figure) -> bytes:
    """Encode a figure as PNG, at 120 dots per inch."""
    # Without pyplot, which needs a display and keeps all figures open.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    return buffer.getvalue()
