"""Draws the confusion matrix and the errors of each label as pictures."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from training.evaluation.scores import Scores
from training.report.charts import BLUE, INK, RED, chart

_MAX_NAMED_LABELS = 60  # the names of more would overlap
_MAX_LABELS_WITH_COUNTS = 20  # the counts of more would be too small to read
_LEAST_FULL_SHARE = 0.01  # of a row: the least share of errors in full colour
_MAX_BARS = 25
_NAMED = 3  # predictions beside a bar
_DARK = 0.7  # of the scale: from here on text is white

_Floats = npt.NDArray[np.float64]


def draw_confusion(scores: Scores) -> Figure:
    """Confusion matrix: rows are true labels. Blue is right, red wrong; colour is the fraction of the row."""
    counts = np.array(scores.confusion)  # (K, K)
    labels = _names(scores)
    named = labels if len(labels) <= _MAX_NAMED_LABELS else []
    side = min(14.0, max(4.0, 0.45 * len(labels) + 1.5))  # inches
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    strength = _strength(counts)
    axes.imshow(_colours(strength), interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true", title="confusion matrix, test split")
    axes.set_xticks(range(len(named)), named, rotation=90 if max(map(len, labels)) > 3 else 0)  # noqa: PLR2004
    axes.set_yticks(range(len(named)), named)
    if len(labels) <= _MAX_LABELS_WITH_COUNTS:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if strength[row, column] > _DARK else INK
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8
            )
    return figure


def draw_breakdown(scores: Scores) -> Figure:
    """The share of wrong predictions of each label, and what is predicted instead, the largest first."""
    counts = np.array(scores.confusion)  # (K, K)
    labels = _names(scores)
    images = counts.sum(axis=1)  # (K,)
    wrong = images - np.diagonal(counts)
    share = wrong / np.maximum(images, 1)
    order = [int(label) for label in np.argsort(-share, kind="stable") if images[label]][:_MAX_BARS]
    figure, axes = chart(8.0, 0.6 + 0.3 * len(order))
    bars = axes.barh(range(len(order)), [100 * share[label] for label in order], color=RED, height=0.7)
    texts = [_instead(counts[label], label, labels) for label in order]
    axes.bar_label(bars, texts, padding=4, color=INK, fontsize=8)
    axes.set_yticks(range(len(order)), [labels[label] for label in order])
    axes.invert_yaxis()
    axes.set_xlim(0, max(1e-3, 100 * float(share.max())) * 1.7)  # room for the texts
    axes.set(xlabel="wrong predictions in % of the label's test images")
    return figure


def _strength(counts: npt.NDArray[np.int64]) -> _Floats:
    """(K, K), 0..1: shares of rows; errors relative to the largest, by their root, so that rare ones show."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    errors = shares * (1 - np.eye(len(shares)))
    return np.asarray(np.where(errors > 0, np.sqrt(errors / max(_LEAST_FULL_SHARE, errors.max())), shares))


def _colours(strength: _Floats) -> _Floats:
    """(K, K) -> (K, K, 3): from white to blue on the diagonal, to red elsewhere."""
    blue, red = np.array(to_rgb(BLUE)), np.array(to_rgb(RED))
    full = np.where(np.eye(len(strength), dtype=bool)[..., None], blue, red)
    return np.asarray(1 - (1 - full) * strength[..., None])


def _instead(row: npt.NDArray[np.int64], label: int, labels: Sequence[str]) -> str:
    """Such as "16 of 1,009: 4 (7), 3 (3), 5 (3) …"."""
    others = [int(other) for other in np.argsort(-row, kind="stable") if row[other] and other != label]
    named = ", ".join(f"{labels[other]} ({row[other]:,})" for other in others[:_NAMED])
    count = f"{int(row.sum() - row[label]):,} of {int(row.sum()):,}"
    return f"{count}: {named}{' …' if len(others) > _NAMED else ''}" if others else count


def _names(scores: Scores) -> list[str]:
    # Matplotlib would render text between two dollar signs as mathematics.
    return [entry.label.replace("$", r"\$") for entry in scores.labels]
