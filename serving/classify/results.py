"""Results of the use case: ranked labels, or a network's raw outputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serving.engine.base import Floats, Output
from serving.errors import ImageError, InvalidOutput

# Ranking or encoding a label takes up to 1 us: more labels are divided, see serving/turns.py.
LABELS_PER_SLICE = 256


@dataclass(slots=True)  # not frozen: that takes three times as long, for each of a thousand labels
class RankedLabel:
    """One label of an image."""

    label: str
    index: int
    probability: float


Ranking = tuple[RankedLabel, ...]
Failure = ImageError | InvalidOutput  # of one image


@dataclass(frozen=True, slots=True)
class Classification:
    """The ranked labels or the error of each image of a request."""

    model: str
    version: int
    results: tuple[Ranking | Failure, ...]


@dataclass(slots=True)
class Inference:
    """The network's outputs for all images of a request."""

    model: str
    version: int
    labels: tuple[str, ...]
    output: Output


def row_slices(rows: int, labels: int) -> Iterator[slice]:
    """Divide the rows of a request into slices of about LABELS_PER_SLICE labels, of one row at least.

    Args:
        rows: number of images.
        labels: labels of each.
    """
    size = max(1, LABELS_PER_SLICE // labels)
    return (slice(start, start + size) for start in range(0, rows, size))


def rank(probabilities: Floats, labels: Sequence[str], top_k: int) -> Ranking:
    """Rank labels by probability; ties by index.

    Args:
        probabilities: (K,) float32.
        labels: K labels.
        top_k: at least 1; more than K means K.
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    indices = order.tolist()
    ranked = [labels[index] for index in indices]
    return tuple(map(RankedLabel, ranked, indices, probabilities[order].tolist()))
