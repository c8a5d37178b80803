"""Counts the answers of a network: predicted labels, and the confidence of each prediction. Pure."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.bundle.manifest import CONFIDENCE_BOUNDS, CONFIDENCE_BUCKETS, Reference

Counts = npt.NDArray[np.intp]


class Answers(NamedTuple):
    """Answers for N images, as counts."""

    predicted: Counts  # (K,) images by predicted label
    confidence: Counts  # (CONFIDENCE_BUCKETS,) images by bucket of top-1 confidence
    confidence_sum: float  # of all N


def count_answers(probabilities: npt.NDArray[np.floating]) -> Answers:
    """Count the answers of a network.

    Args:
        probabilities: (N, K).
    """
    labels = probabilities.argmax(axis=1)  # (N,); ties: the first, as `rank` orders them
    top = probabilities[np.arange(len(labels)), labels].astype(np.float64)  # (N,)
    buckets = np.searchsorted(CONFIDENCE_BOUNDS, top)  # (N,)
    return Answers(
        np.bincount(labels, minlength=probabilities.shape[1]),
        np.bincount(buckets, minlength=CONFIDENCE_BUCKETS),
        float(top.sum()),
    )


def reference_of(probabilities: npt.NDArray[np.floating]) -> Reference:
    """Return the reference for a manifest.

    Args:
        probabilities: (N, K) of the published file, for the test images; N >= 1.
    """
    answers = count_answers(probabilities)
    return Reference(
        predicted=tuple(answers.predicted.tolist()), confidence=tuple(answers.confidence.tolist())
    )
