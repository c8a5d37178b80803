"""Draws the confusion matrix as a picture."""

import io

import numpy as np
from matplotlib.figure import Figure

from training.evaluation.scores import Scores

_DOTS_PER_INCH = 120
_MAX_NAMED_LABELS = 60  # the names of more would overlap
_MAX_LABELS_WITH_COUNTS = 20  # the counts of more would be too small to read


def draw_confusion(scores: Scores) -> Figure:
    """Confusion matrix: rows are true labels, columns predicted ones; colour is the fraction of the row."""
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
    # Without pyplot: it needs a display, and keeps every figure open.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    return buffer.getvalue()
