"""How far the answers of a version have moved from those in its manifest: the population stability index.

Pure: counts in, an index out. Live counts come from a window of the most recent images.
"""

import heapq
import math
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from serving.bundle import Reference

_MAX_LABEL_BINS = 20
_MIN_REFERENCE_IMAGES = 5  # of a bin, on average (labels), or to begin one (confidence)
# Added to each count, so that an empty bin has a logarithm (Jeffreys' prior).
_PRIOR = 0.5

Bins = npt.NDArray[np.intp]  # label or bucket of confidence -> bin


def label_bins(reference: Reference) -> Bins:
    """Divide the labels into at most 20 bins of about equal shares of the reference: (K,).

    With one bin for each of a thousand labels, chance alone would move the index.
    """
    predicted = reference.predicted
    count = max(1, min(_MAX_LABEL_BINS, len(predicted), sum(predicted) // _MIN_REFERENCE_IMAGES))
    lightest = list(zip(repeat(0), range(count), strict=False))  # (images, bin), a heap
    bins = np.empty(len(predicted), np.intp)
    for label in sorted(range(len(predicted)), key=lambda each: -predicted[each]):
        images, into = lightest[0]
        bins[label] = into
        heapq.heapreplace(lightest, (images + predicted[label], into))
    return bins


def confidence_bins(reference: Reference) -> Bins:
    """Join neighbouring buckets of confidence that have few images of the reference: (buckets,).

    A bucket with five images or more begins a bin, so that rare values are apart from frequent ones: a
    network may be sure of all its test images, and of few live ones.
    """
    bins: list[int] = []
    at, images = 0, 0
    for bucket, count in enumerate(reference.confidence):
        if bucket and max(images, count) >= _MIN_REFERENCE_IMAGES:
            at, images = at + 1, 0
        bins.append(at)
        images += count
    return np.array(bins)


def in_bins(counts: Sequence[int] | npt.NDArray[np.intp], bins: Bins) -> list[float]:
    """Return the images in each bin."""
    images: list[float] = np.bincount(bins, weights=counts).tolist()
    return images


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


class Window:
    """The counts of the most recent images: two blocks, of which the older is dropped when the newer is full.

    A block is full when it is old enough and has enough images: few requests make the window longer, many do
    not make it shorter.
    """

    def __init__(self, bins: int, *, window_s: float, min_images: int, now_s: float) -> None:
        """Start empty.

        Args:
            bins: number of counts.
            window_s: a block is old enough after half of this.
            min_images: a block has enough images with half of this.
            now_s: on any clock.
        """
        self._block_s = window_s / 2
        self._block_images = min_images / 2
        self._since_s = now_s
        self._older, self._newer = np.zeros(bins), np.zeros(bins)
        self._images = 0.0  # of the newer block

    def add(self, counts: Sequence[float], images: float, now_s: float) -> list[float]:
        """Add counts of some images, and return those of the window."""
        if now_s - self._since_s >= self._block_s and self._images >= self._block_images:
            self._older, self._newer = self._newer, np.zeros(len(self._newer))
            self._since_s, self._images = now_s, 0.0
        self._newer += counts
        self._images += images
        window: list[float] = (self._older + self._newer).tolist()
        return window
