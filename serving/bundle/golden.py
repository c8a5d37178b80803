"""golden.npz: real images in model geometry and the probabilities that the version must give for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels
from serving.bundle.manifest import GOLDEN_FILE, Manifest
from serving.errors import BundleError

MAX_GOLDEN_IMAGES = 32


@dataclass(frozen=True, slots=True)
class Golden:
    """Examples by which a version proves itself."""

    images: Pixels  # (G, H, W, C) uint8, 1 <= G <= 32
    probabilities: npt.NDArray[np.float32]  # (G, K)

    def largest_difference(self, probabilities: npt.NDArray[np.float32]) -> float:
        """How far other probabilities (G, K) are from ours: infinite if any of them is not a number."""
        difference = np.abs(probabilities - self.probabilities).max()
        return float(difference) if np.isfinite(difference) else float("inf")


def write_golden(golden: Golden, folder: Path) -> None:
    """Write golden.npz into a version's folder."""
    np.savez_compressed(folder / GOLDEN_FILE, images=golden.images, probabilities=golden.probabilities)


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """Read golden.npz and check it against the manifest. Nothing is unpickled.

    Raises:
        BundleError: the arrays are missing, or of another shape or type than the manifest says.
    """
    try:
        # numpy leaves a file open that it opened itself and found broken.
        with (folder / GOLDEN_FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            golden = Golden(np.asarray(arrays["images"]), np.asarray(arrays["probabilities"]))
    except Exception as error:  # zipfile, zlib and numpy raise whatever they trip over
        raise BundleError(f"{folder / GOLDEN_FILE} cannot be read: {error}") from error
    count = len(golden.images) if golden.images.ndim else 0
    geometry = manifest.geometry
    expected = (count, geometry.height, geometry.width, geometry.channels), (count, len(manifest.labels))
    found = golden.images.shape, golden.probabilities.shape
    if found != expected or not 1 <= count <= MAX_GOLDEN_IMAGES:
        raise BundleError(
            f"{folder / GOLDEN_FILE} holds shapes {found}, expected {expected} with 1..{MAX_GOLDEN_IMAGES}"
        )
    if golden.images.dtype != np.uint8 or golden.probabilities.dtype != np.float32:
        raise BundleError(
            f"{folder / GOLDEN_FILE} holds {golden.images.dtype} and {golden.probabilities.dtype}"
        )
    return golden
