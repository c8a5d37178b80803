"""known-images.npy: which images a version was trained on, where images are not files with their own digests.

They are recognized by the first 64 bits of the SHA-256 of their pixels in the network's geometry: with
60,000 images known, one new image in 3e14 is mistaken for a known one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import Dataset
from training.data.relabelled import one_label_each
from training.data.storage.disk_images import Images

KNOWN_IMAGES_FILE = "known-images.npy"
_DIGEST_BYTES = 8
_RECORD = np.dtype([("digest", "<u8"), ("label", "<u4")])  # the label is an index into the version's labels

Prefixes = npt.NDArray[np.uint64]


def write_known_images(dataset: Dataset, path: Path) -> None:
    """Write digests and labels of the training and validation images, sorted; they chose the weights."""
    splits = (dataset.train, dataset.validation)
    records = np.empty(sum(map(len, splits)), _RECORD)
    records["digest"] = np.concatenate([prefixes(split.images) for split in splits])
    records["label"] = np.concatenate([split.labels for split in splits])
    with path.open("wb") as file:
        np.save(file, np.unique(records), allow_pickle=False)


def read_known_images(path: Path) -> Prefixes | None:
    """Read the digests that `write_known_images` wrote; None if there is no such file, or it is damaged."""
    records = _read(path)
    return None if records is None else records["digest"]


def read_image_labels(path: Path, labels: Sequence[str]) -> dict[int, str]:
    """Read digest -> label, without images that have several labels; empty if it was not recorded.

    Args:
        path: of the file.
        labels: of the version.
    """
    records = _read(path)
    if records is None or (records["label"] >= len(labels)).any():
        return {}
    named = [labels[index] for index in records["label"].tolist()]
    return one_label_each(zip(records["digest"].tolist(), named, strict=True))


def image_labels(dataset: Dataset) -> dict[int, str]:
    """Return digest -> label of all images of a data set, without images that have several labels."""
    return one_label_each(
        (digest, dataset.labels[label])
        for split in dataset.splits().values()
        for digest, label in zip(prefixes(split.images).tolist(), split.labels.tolist(), strict=True)
    )


def prefixes(images: Images) -> Prefixes:
    """Return the first 64 bits of the digest of each image: (N, H, W, C) uint8 -> (N,)."""
    joined = b"".join(
        hashlib.sha256(np.ascontiguousarray(images[index]).tobytes()).digest()[:_DIGEST_BYTES]
        for index in range(len(images))
    )
    return np.frombuffer(joined, np.uint64)


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
    records["digest"], records["label"] = known, np.iinfo(np.uint32).max
    return records
