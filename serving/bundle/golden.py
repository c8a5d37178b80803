"""golden.npz: images in the network's geometry, and the probabilities that the version must reproduce."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels
from serving.bundle.manifest import GOLDEN_FILE, Manifest
from serving.errors import BundleError
from serving.limited_files import open_regular, why_unreadable

MAX_GOLDEN_IMAGES = 32
_ARRAY_HEADER_BYTES = 2**16  # numpy's header, which names the dtype and the shape


@dataclass(frozen=True, slots=True)
class Golden:
    """The examples that prove a loaded version."""

    images: Pixels  # (G, H, W, C) uint8, 0-255, 1 <= G <= 32
    probabilities: npt.NDArray[np.float32]  # (G, K) float32, 0..1

    def largest_difference(self, probabilities: npt.NDArray[np.float32]) -> float:
        """Return the largest absolute difference from other probabilities, (G, K); infinity if any is NaN."""
        difference = np.abs(probabilities - self.probabilities).max()
        return float(difference) if np.isfinite(difference) else float("inf")


def class_balanced_indices(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.intp]:
    """Return up to `count` indices, balanced over labels: the first image of each, then the second, ..."""
    rank = np.empty(len(labels), dtype=np.intp)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.lexsort((labels, rank))[:count]


def write_golden(golden: Golden, folder: Path) -> None:
    """Write golden.npz to the folder of a version."""
    # In memory first: on a full disk, numpy's archive writer reports a second error when it is collected.
    content = io.BytesIO()
    np.savez_compressed(content, images=golden.images, probabilities=golden.probabilities)
    (folder / GOLDEN_FILE).write_bytes(content.getvalue())


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """Read golden.npz and check it against the manifest. Nothing is unpickled.

    Raises:
        BundleError: the file cannot be read, or the shape or dtype of an array contradicts the manifest.
    """
    try:
        # Opened here because numpy does not close a broken file that it has opened.
        with open_regular(folder / GOLDEN_FILE) as file, np.load(file, allow_pickle=False) as arrays:
            _check_size(arrays.zip, manifest)
            golden = Golden(np.asarray(arrays["images"]), np.asarray(arrays["probabilities"]))
    except Exception as error:  # zipfile, zlib and numpy raise many kinds of errors
        # numpy's messages may have more lines, about options of numpy
        reason = why_unreadable(error) if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise BundleError(f"{folder / GOLDEN_FILE} cannot be read: {reason}") from error
    count = len(golden.images) if golden.images.ndim else 0
    geometry = manifest.geometry
    expected = (count, geometry.height, geometry.width, geometry.channels), (count, len(manifest.labels))
    found = golden.images.shape, golden.probabilities.shape
    if found != expected or not 1 <= count <= MAX_GOLDEN_IMAGES:
        raise BundleError(
            f"{folder / GOLDEN_FILE} has arrays of shapes {found}, expected {expected} with 1 to "
            f"{MAX_GOLDEN_IMAGES} images"
        )
    if golden.images.dtype != np.uint8 or golden.probabilities.dtype != np.float32:
        raise BundleError(
            f"{folder / GOLDEN_FILE} has images of {golden.images.dtype} and probabilities of "
            f"{golden.probabilities.dtype}, expected uint8 and float32"
        )
    return golden


def _check_size(archive: zipfile.ZipFile, manifest: Manifest) -> None:
    """Reject arrays that are larger than the largest valid ones, before they are decompressed."""
    geometry = manifest.geometry
    image_bytes = geometry.height * geometry.width * geometry.channels
    limit_bytes = MAX_GOLDEN_IMAGES * max(image_bytes, 4 * len(manifest.labels)) + _ARRAY_HEADER_BYTES
    largest_bytes = max((each.file_size for each in archive.infolist()), default=0)
    if largest_bytes > limit_bytes:
        raise ValueError(f"an array has {largest_bytes} bytes, limit is {limit_bytes}")
