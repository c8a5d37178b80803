"""Whole arrays of images brought into model geometry, by the code that the server runs."""

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry, apply_geometry
from serving.bundle.images import Pixels


def apply_geometry_to_all(images: npt.NDArray[np.uint8], geometry: Geometry) -> Pixels:
    """(N, h, w, c) of any size -> (N, H, W, C)."""
    if images.shape[1:] == geometry.shape:
        # Geometry leaves such images as they are. torch wants memory that it could write to.
        return np.require(images, requirements=["C", "W"])
    return np.stack([apply_geometry(image, geometry) for image in images])
