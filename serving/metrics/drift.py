"""The bins and the window in which live answers are compared with those in a manifest. Pure."""

import heapq
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from serving.bundle import Reference

_MAX_LABEL_BINS = 20
_MIN_REFERENCE_IMAGES = 5  # of a bin, on average (labels), or to begin one (confidence)

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
