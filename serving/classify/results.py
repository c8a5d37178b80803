"""Results of the use case: ranked labels, or a network's raw outputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.engine.base import Floats, Output
from serving.errors import ImageError


@dataclass(frozen=True, slots=True)
class RankedLabel:
    """One label of an image."""

    label: str
    index: int
    probability: float


Ranking = tuple[RankedLabel, ...]


@dataclass(frozen=True, slots=True)
class Classification:
    """The ranked labels or the error of each image of a request."""

    model: str
    version: int
    results: tuple[Ranking | ImageError, ...]


@dataclass(slots=True)
class Inference:
    """The network's outputs for all images of a request."""

    model: str
    version: int
    labels: tuple[str, ...]
    output: Output


def rank(probabilities: Floats, labels: Sequence[str], top_k: int) -> Ranking:
    """Rank labels by probability; ties by index.

    Args:
        probabilities: (K,) float32.
        labels: K labels.
        top_k: at least 1; more than K means K.
    """
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(RankedLabel(labels[index], int(index), float(probabilities[index])) for index in order)
