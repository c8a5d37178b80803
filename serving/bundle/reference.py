"""Counts the answers of a network: labels and confidence; and says how far such counts have moved. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.bundle.manifest import CONFIDENCE_BOUNDS, CONFIDENCE_BUCKETS, Reference

Counts = npt.NDArray[np.intp]

_PRIOR = 0.5  # added to each count, so that an empty bin has a logarithm (Jeffreys' prior)


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


def stability_index(live: Sequence[float], reference: Sequence[float]) -> float:
    """Return the population stability index without what chance alone gives; at least 0.

    The sum of (p - q) ln(p / q) over bins. Without drift its expectation is (B - 1)(1/N + 1/M) for N and M
    images in B bins (Yurdakul and Naranjo 2020, J. Risk Model Validation 14(4)). It is usual to read 0.1 as a
    moderate change and 0.25 as a large one.

    Args:
        live: images in each bin, N in all.
        reference: images in each bin, M in all.
    """
    images, of_reference, count = sum(live), sum(reference), len(live)
    index = 0.0
    for here, there in zip(live, reference, strict=True):
        p = (here + _PRIOR) / (images + _PRIOR * count)
        q = (there + _PRIOR) / (of_reference + _PRIOR * count)
        index += (p - q) * math.log(p / q)
    return max(0.0, index - (count - 1) * (1 / images + 1 / of_reference))
