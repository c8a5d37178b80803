"""Brings arrays of images into model geometry, with the server's own code."""

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry, apply_geometry
from serving.bundle.images import Pixels


def apply_geometry_to_all(images: npt.NDArray[np.uint8], geometry: Geometry) -> Pixels:
    """(N, h, w, c) uint8 of any size -> (N, H, W, C) uint8, contiguous and writable."""
    if images.shape[1:] == geometry.shape:
        # Already in model geometry. torch.from_numpy warns if an array is not writable.
        return np.require(images, requirements=["C", "W"])
    return np.stack([apply_geometry(image, geometry) for image in images])
