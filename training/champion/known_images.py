"""known-images.npy: which images a version was trained on, where images are not files with their own digests.

They are recognized by the first 64 bits of the SHA-256 of their pixels in the network's geometry: with
60,000 images known, one new image in 3e14 is mistaken for a known one.
"""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import Dataset
from training.data.storage.disk_images import Images

KNOWN_IMAGES_FILE = "known-images.npy"
_DIGEST_BYTES = 8

Prefixes = npt.NDArray[np.uint64]


def write_known_images(dataset: Dataset, path: Path) -> None:
    """Write the digests of the training and validation images, sorted; they chose the weights."""
    found = [prefixes(split.images) for split in (dataset.train, dataset.validation)]
    with path.open("wb") as file:
        np.save(file, np.unique(np.concatenate(found)), allow_pickle=False)


def read_known_images(path: Path) -> Prefixes | None:
    """Read what `write_known_images` wrote; None if there is no such file, or it is damaged."""
    try:
        with path.open("rb") as file:
            known = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return known if isinstance(known, np.ndarray) and known.dtype == np.uint64 else None


def prefixes(images: Images) -> Prefixes:
    """Return the first 64 bits of the digest of each image: (N, H, W, C) uint8 -> (N,)."""
    joined = b"".join(
        hashlib.sha256(np.ascontiguousarray(images[index]).tobytes()).digest()[:_DIGEST_BYTES]
        for index in range(len(images))
    )
    return np.frombuffer(joined, np.uint64)
