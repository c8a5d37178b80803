"""Images to run a network on when there are none: smooth colours and noise, the same every time."""

import numpy as np
from PIL import Image

from serving.bundle.images import Pixels

_SMOOTH = 6  # of the images
_COARSE_SIDE = 5  # pixels of a smooth image before it is enlarged


def example_images(height: int, width: int, channels: int, count: int = 8) -> Pixels:
    """Return images: six smooth ones of any colour, then noise.

    Returns: (count, height, width, channels) uint8.
    """
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        if number < _SMOOTH:
            coarse = random.integers(0, 256, (_COARSE_SIDE, _COARSE_SIDE, 3), np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
        else:
            image = random.integers(0, 256, (height, width, 3), np.uint8)
        images.append(image[:, :, :channels])
    return np.stack(images)  # (count, H, W, C)
