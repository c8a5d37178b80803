"""Finds near duplicates: images that look the same though their pixels differ, such as rescaled copies.

Each image gets a perceptual hash (pHash): 64 bits, the signs of the lowest DCT frequencies of a small grey
copy. Two images are near duplicates if few bits differ and their small copies correlate. The bits alone would
also match many pairs of distinct handwritten digits.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from serving.bundle.images import Pixels
from training.atomic_files import exclusive_lock, replace_file
from training.data.storage.disk_images import Images, chunks, feed_digest

MAX_BITS = 4  # of 64 may differ
MIN_CORRELATION = 0.985  # of the small copies; 33 pairs of 15,000 MNIST digits reach it

_SIDE = 32  # pixels of the small copy
_LEAST_CONTRAST = 2.0 * _SIDE  # norm of a centred copy: two grey levels of standard deviation
_FREQUENCIES = 8  # side of the block of frequencies that makes up the hash
_BANDS = MAX_BITS + 1  # if at most MAX_BITS bits differ, at least one of this many bands is equal
_MOST_IN_BUCKET = 200  # images that share a band: larger buckets are uninformative, and quadratic in time
_VERSION = 1  # of this method; part of the cache key

Pairs = list[tuple[int, int]]


def find_near_duplicates(groups: Sequence[Images], cache: Path | None = None) -> Pairs:
    """Find all pairs of near duplicates; pairs of equal images are not among them.

    Args:
        groups: (N, H, W, C) uint8 each, of equal size. Indices run on from one group to the next.
        cache: directory of earlier results, keyed by content; None: always search.

    Returns: pairs of indices, the lower one first, sorted.
    """
    if cache is None:
        return _search(groups)
    kept = cache / f"near-duplicates-{_digest(groups)}.json"
    with exclusive_lock(kept.with_suffix(".lock")):  # only one process of a run searches
        try:
            return [(first, second) for first, second in json.loads(kept.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            pairs = _search(groups)
        replace_file(kept, json.dumps(pairs).encode())
    return pairs


def _digest(groups: Sequence[Images]) -> str:
    shape = (sum(map(len, groups)), *groups[0].shape[1:])
    sha = hashlib.sha256(f"{_VERSION} {shape}".encode())
    feed_digest(sha.update, groups)
    return sha.hexdigest()


def _search(groups: Sequence[Images]) -> Pairs:
    starts = np.cumsum([0, *map(len, groups)])  # first index of each group, and the end
    if not starts[-1]:
        return []
    copies = np.empty((starts[-1], _SIDE, _SIDE), np.uint8)
    for index, image in enumerate(image for images in groups for image in images):
        copies[index] = _small_grey(image)
    bits = np.concatenate([_hash(part) for part in chunks(copies)])  # (N, 64) bool
    found = {pair for pair in _candidates(bits) if _alike(pair, copies, bits)}

    def image_at(index: int) -> Pixels:
        group = int(np.searchsorted(starts, index, side="right")) - 1
        return groups[group][index - int(starts[group])]

    def equal(first: int, second: int) -> bool:
        # Images whose small copies differ cannot be equal, and need not be read again.
        same_copies = np.array_equal(copies[first], copies[second])
        return same_copies and np.array_equal(image_at(first), image_at(second))

    return sorted(pair for pair in found if not equal(*pair))


def _small_grey(image: Pixels) -> Pixels:
    """(32, 32) uint8."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("L")
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def _hash(copies: Pixels) -> npt.NDArray[np.bool_]:
    frequencies = dctn(copies.astype(np.float32), axes=(1, 2))[:, :_FREQUENCIES, :_FREQUENCIES].reshape(
        len(copies), -1
    )
    # The first frequency is the mean brightness, which is not part of the content.
    middle = np.median(frequencies[:, 1:], axis=1, keepdims=True)
    signs: npt.NDArray[np.bool_] = frequencies > middle
    return signs


def _candidates(bits: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in at least one band of bits."""
    for band in np.array_split(bits, _BANDS, axis=1):
        keys = np.packbits(band, axis=1)  # (N, bytes)
        order = np.lexsort(keys.T)
        differs = (np.diff(keys[order], axis=0) != 0).any(axis=1)
        for bucket in np.split(order, np.flatnonzero(differs) + 1):
            if 1 < len(bucket) <= _MOST_IN_BUCKET:
                yield from _pairs_of(sorted(bucket.tolist()), bits)


def _pairs_of(bucket: Sequence[int], bits: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    members = bits[bucket]  # (M, 64)
    distances = (members[:, np.newaxis] != members[np.newaxis]).sum(axis=2)  # (M, M)
    for first, second in zip(*np.nonzero(np.triu(distances <= MAX_BITS, k=1)), strict=True):
        yield bucket[first], bucket[second]


def _alike(pair: tuple[int, int], copies: Pixels, bits: npt.NDArray[np.bool_]) -> bool:
    first, second = pair
    if (bits[first] != bits[second]).sum() > MAX_BITS:
        return False
    one, other = (_centred(copies[index]) for index in (first, second))
    contrasts = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if min(contrasts) < _LEAST_CONTRAST:
        return False  # blank images have no content to compare
    return float(one @ other) >= MIN_CORRELATION * contrasts[0] * contrasts[1]


def _centred(copy: Pixels) -> npt.NDArray[np.float32]:
    """(1024,), with mean 0."""
    wide = copy.astype(np.float32).ravel()
    centred: npt.NDArray[np.float32] = wide - wide.mean()
    return centred
