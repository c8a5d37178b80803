"""known-images.npy: the images of a version by their pixels, with their labels, and which it was trained on.

They are recognized by the first 64 bits of the SHA-256 of their pixels in the network's geometry: with
60,000 images known, one new image in 3e14 is mistaken for a known one. A file that was saved again without
loss has the same pixels.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import Dataset
from training.data.labels import Indices
from training.data.relabelled import one_label_each
from training.data.storage.disk_images import Images

KNOWN_IMAGES_FILE = "known-images.npy"
_DIGEST_BYTES = 8
# The label is an index into the version's labels. Training and validation images chose the weights.
_RECORD = np.dtype([("digest", "<u8"), ("label", "<u4"), ("chose", "?")])

Prefixes = npt.NDArray[np.uint64]


def write_known_images(dataset: Dataset, path: Path) -> None:
    """Write digests and labels of all images, sorted."""
    parts = []
    for name, split in dataset.splits().items():
        part = np.empty(len(split), _RECORD)
        part["digest"], part["label"], part["chose"] = prefixes(split.images), split.labels, name != "test"
        parts.append(part)
    with path.open("wb") as file:
        np.save(file, np.unique(np.concatenate(parts)), allow_pickle=False)


def read_known_images(path: Path) -> Prefixes | None:
    """Read the digests of training and validation images; None if the file is missing or damaged."""
    records = _read(path)
    return None if records is None else records["digest"][records["chose"]]


def read_image_labels(path: Path, labels: Sequence[str]) -> dict[int, str]:
    """Read digest -> label; see `one_label_each`. Empty if the labels were not recorded.

    Args:
        path: of the file.
        labels: of the version.
    """
    records = _read(path)
    if records is None or (records["label"] >= len(labels)).any():
        return {}
    named = [labels[index] for index in records["label"].tolist()]
    return one_label_each(zip(records["digest"].tolist(), named, strict=True))


def prefixes(images: Images) -> Prefixes:
    """Return the first 64 bits of the digest of each image: (N, H, W, C) uint8 -> (N,)."""
    joined = b"".join(
        hashlib.sha256(np.ascontiguousarray(images[index]).tobytes()).digest()[:_DIGEST_BYTES]
        for index in range(len(images))
    )
    return np.frombuffer(joined, np.uint64)


def first_of_equal(images: Images, indices: Indices) -> Indices:
    """Leave out indices of images that are equal to one of an earlier index, in every pixel.

    Args:
        images: (N, H, W, C) uint8.
        indices: (n,) of some of them.
    """
    firsts = np.unique(prefixes(images)[indices], return_index=True)[1]
    return indices[np.sort(firsts)]


def _read(path: Path) -> npt.NDArray[np.void] | None:
    """Read the records; those of earlier releases have no labels, and get one that no version has."""
    try:
        with path.open("rb") as file:
            known = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(known, np.ndarray) or known.dtype not in (_RECORD, np.dtype(np.uint64)):
        return None
    if known.dtype == _RECORD:
        return known
    records = np.empty(len(known), _RECORD)
    records["digest"], records["label"], records["chose"] = known, np.iinfo(np.uint32).max, True
    return records
