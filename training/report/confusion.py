"""The confusion matrix and the scores of each label. With many labels, the block that is confused most."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.bundle.measures import wilson_interval
from training.evaluation.scores import LabelScore, Scores
from training.report.blocks import Block, Cell, Fold, Matrix, Table

MAX_LABELS = 24  # of a matrix that is shown whole
_BLOCK = 15  # labels of the block
_LEAST_FULL_SHARE = 0.01  # of a row: the least share of errors in full colour
_MOST_ROWS = 25  # of the table of labels before the rest is folded


def confusion_matrix(scores: Scores) -> Matrix:
    """All labels, or those of the most frequent errors."""
    counts = np.array(scores.confusion)  # (K, K)
    labels = [entry.label for entry in scores.labels]
    if len(labels) <= MAX_LABELS:
        return _matrix(
            "Confusion matrix",
            labels,
            counts,
            range(len(labels)),
            "Rows are true labels, columns are predictions. Each cell has the number of test images and "
            "its share of the row. Blue is right; the redder, the larger the share of errors.",
        )
    chosen = confused_block(counts)
    errors = counts.sum() - np.trace(counts)
    covered = counts[np.ix_(chosen, chosen)]
    share = (covered.sum() - np.trace(covered)) / max(1, errors)
    return _matrix(
        f"Confusion matrix of {len(chosen)} labels",
        labels,
        counts,
        chosen,
        f"The part of the matrix of {len(labels):,} labels with the most frequent errors: {share:.0%} of all "
        "errors. Rows are true labels, columns are predictions. Each cell has the number of test images and "
        "its share of all images of the row's label. Blue is right; the redder, the larger the share of "
        "errors.",
    )


def confused_block(counts: npt.NDArray[np.int64], size: int = _BLOCK) -> list[int]:
    """The labels of the most frequent errors, ascending.

    Args:
        counts: (K, K) the confusion matrix.
        size: the largest number of labels.
    """
    errors = counts + counts.T  # (K, K) errors between two labels, in both directions
    np.fill_diagonal(errors, 0)
    chosen: list[int] = []
    for position in np.argsort(-np.triu(errors), axis=None, kind="stable"):
        pair = divmod(int(position), len(counts))
        added = [label for label in pair if label not in chosen]
        if not errors[pair] or len(chosen) + len(added) > size:
            break
        chosen += added
    return sorted(chosen) or list(range(min(size, len(counts))))


def label_tables(scores: Scores) -> tuple[Block, ...]:
    """Precision, recall and F1 of every label, the lowest recall first."""
    entries = sorted(scores.labels, key=lambda entry: (not entry.images, entry.recall, entry.label))
    title = "Scores of each label, the lowest recall first"
    if len(entries) <= _MOST_ROWS:
        return (_label_table(title, entries),)
    return (
        _label_table(title, entries[:_MOST_ROWS]),
        Fold(
            f"The other {len(entries) - _MOST_ROWS:,} labels",
            (_label_table("", entries[_MOST_ROWS:]),),
        ),
    )


def _label_table(title: str, entries: Sequence[LabelScore]) -> Table:
    return Table(
        title,
        ("label", "test images", "recall", "95 % interval", "precision", "F1"),
        tuple(
            (
                entry.label,
                f"{entry.images:,}",
                Cell(f"{entry.recall:.1%}", entry.recall) if entry.images else "",
                _interval(entry),
                f"{entry.precision:.1%}",
                f"{entry.f1:.3f}",
            )
            for entry in entries
        ),
        frozenset({0}),
    )


def _interval(entry: LabelScore) -> str:
    if not entry.images:
        return ""
    recall = wilson_interval(round(entry.recall * entry.images), entry.images)
    return f"{recall.low:.1%} to {recall.high:.1%}"


def _matrix(
    title: str,
    labels: Sequence[str],
    counts: npt.NDArray[np.int64],
    chosen: Sequence[int],
    caption: str,
) -> Matrix:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (K, K)
    most = max(_LEAST_FULL_SHARE, float((shares * (1 - np.eye(len(shares))))[np.ix_(chosen, chosen)].max()))

    def cell(row: int, column: int) -> Cell:
        count, share = int(counts[row, column]), float(shares[row, column])
        return Cell(
            f"{count:,}\n{share:.1%}" if count else "",
            share if row == column else (share / most) ** 0.5,  # rare errors would have no colour
            "good" if row == column else "bad",
            f"true {labels[row]}, predicted {labels[column]}: {count:,} images, {share:.1%} of the row",
        )

    return Matrix(
        title,
        tuple(labels[label] for label in chosen),
        tuple(tuple(cell(row, column) for column in chosen) for row in chosen),
        caption,
    )
