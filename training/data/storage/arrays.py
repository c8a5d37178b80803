"""Brings arrays of images into model geometry, with the server's own code."""

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry, apply_geometry, keeps_pixels
from serving.bundle.images import Pixels


def apply_geometry_to_all(images: npt.NDArray[np.uint8], geometry: Geometry) -> Pixels:
    """(N, h, w, c) uint8 of any size -> (N, H, W, C) uint8, contiguous and writable."""
    if keeps_pixels(images.shape[1:], geometry):
        # torch.from_numpy warns if an array is not writable.
        return np.require(images, requirements=["C", "W"])
    fitted = np.empty((len(images), *geometry.shape), np.uint8)
    for index, image in enumerate(images):
        fitted[index] = apply_geometry(image, geometry)
    return fitted
