"""The handwritten digits that ship with scikit-learn: 1,797 real scans of 8x8 pixels."""

import numpy as np

from serving.bundle import Geometry
from training.data.splits import SourceData, Split
from training.data.storage.arrays import apply_geometry_to_all

_BRIGHTEST = 16  # a pixel counts the dark dots of a 4x4 block: 0..16


def load(geometry: Geometry) -> SourceData:
    """Load all digits as one training split, enlarged to model geometry."""
    # Importing scikit-learn takes a second, which other sources should not pay.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    digits = load_digits()
    scans = np.rint(digits.images * (255 / _BRIGHTEST)).astype(np.uint8)[..., np.newaxis]  # (N, 8, 8, 1)
    images = apply_geometry_to_all(scans, geometry)  # (N, H, W, C)
    names = tuple(f"digit {number}" for number in range(len(images)))
    return SourceData(
        labels=tuple(str(name) for name in digits.target_names),
        train=Split(images, digits.target.astype(np.int64), names),
    )
