"""Images that look the same though their pixels differ: scaled, compressed again, a little brighter.

By a perceptual hash of 64 bits: the signs of the lowest frequencies of a small grey copy. Two images are near
duplicates where few bits differ and the small copies correlate; the bits alone would take many a pair of
handwritten ones for one.
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
from training.data.storage.disk_images import Images, chunks, feed_digest
from training.files import exclusive_lock, replace_file

MAX_BITS = 4  # of 64 that may differ
MIN_CORRELATION = 0.985  # of the small copies: of 15,000 MNIST digits 33 pairs are so much alike

_SIDE = 32  # pixels of the small copy
_LEAST_CONTRAST = 2.0 * _SIDE  # two grey levels of deviation
_FREQUENCIES = 8  # a side of the block of frequencies that makes the hash
_BANDS = MAX_BITS + 1  # equal in at least one of so many parts, where only MAX_BITS bits differ
_MOST_IN_BUCKET = 200  # images that share a part: more say nothing, and would take for ever
_VERSION = 1  # of this method: an older verdict is not taken from the cache

Pairs = list[tuple[int, int]]


def find_near_duplicates(groups: Sequence[Images], cache: Path | None = None) -> Pairs:
    """Pairs of indices, the lower one first, sorted; equal images are no near duplicates.

    Args:
        groups: (N, H, W, C) uint8 each, of one size; indices go on from one to the next.
        cache: folder of verdicts by content; none: searched anew.
    """
    if cache is None:
        return _search(groups)
    kept = cache / f"near-duplicates-{_digest(groups)}.json"
    with exclusive_lock(kept.with_suffix(".lock")):  # the processes of one run search once
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
    starts = np.cumsum([0, *map(len, groups)])  # of each group, and the end
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
        # Images whose copies differ need not be read again.
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
    # The first one is the mean brightness, which says nothing of the picture.
    middle = np.median(frequencies[:, 1:], axis=1, keepdims=True)
    signs: npt.NDArray[np.bool_] = frequencies > middle
    return signs


def _candidates(bits: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs that are equal in one of the parts: with MAX_BITS different bits at least one must be."""
    for part in np.array_split(bits, _BANDS, axis=1):
        keys = np.packbits(part, axis=1)  # (N, bytes)
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
        return False  # plain images show nothing that could be the same
    return float(one @ other) >= MIN_CORRELATION * contrasts[0] * contrasts[1]


def _centred(copy: Pixels) -> npt.NDArray[np.float32]:
    """(1024,), with mean 0."""
    wide = copy.astype(np.float32).ravel()
    centred: npt.NDArray[np.float32] = wide - wide.mean()
    return centred
