"""Decoded pixels -> a network's input, uint8 (height, width, channels), by the manifest's geometry.

Training and serving both use this implementation.
"""

import numpy as np
from PIL import Image

from serving.bundle.images import Pixels
from serving.bundle.manifest import Geometry
from serving.bundle.resampling import Box, Size, resize

_STRIP_PIXELS = 2**20


def apply_geometry(pixels: Pixels, geometry: Geometry) -> Pixels:
    """Convert pixels in five steps: remove transparency, crop or fit, resize, convert colours, pad.

    Args:
        pixels: (H, W, C) uint8, C in 1..4, as `decode_image` returns them.
        geometry: of the network's input.

    Returns: (geometry.height, geometry.width, geometry.channels) uint8, 0-255, possibly a view of `pixels`.
    """
    if keeps_pixels(pixels.shape, geometry):
        return pixels
    height, width, channels = pixels.shape
    opaque = pixels if channels in (1, 3) else _opaque(pixels, geometry.background)  # (H, W, 1 or 3)
    box, size = crop_and_size((width, height), geometry)
    resized = resize(opaque, size, box=box, interpolation=geometry.interpolation)  # (h, w, 1 or 3)
    # Colours are converted after resizing: the network's input has fewer pixels than a photograph.
    coloured = _in_colour(resized, geometry.channels)
    return coloured if size == (geometry.width, geometry.height) else _on_background(coloured, geometry)


def keeps_pixels(shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Check whether pixels of this shape, (H, W, C), are the network's input as they are.

    An image can have the size of the input and still be cropped: `apply_geometry` and a caller that skips
    it for many images at once have to agree, so both ask here.
    """
    return shape == geometry.shape and (geometry.fit != "crop" or geometry.crop_fraction == 1)


def crop_and_size(size: Size, geometry: Geometry) -> tuple[Box, Size]:
    """Return which part of an image is used, and the size that it is resized to.

    Args:
        size: (width, height) of the image, in pixels.
        geometry: of the network's input.

    Returns: box (left, top, right, bottom) in pixels of the image, and (width, height) after resizing.
    """
    width, height = size
    if geometry.fit == "crop":
        return _centred_part(width, height, geometry), (geometry.width, geometry.height)
    if geometry.fit == "pad":
        scale = min(geometry.width / width, geometry.height / height)
        fitted = (
            min(geometry.width, max(1, round(width * scale))),
            min(geometry.height, max(1, round(height * scale))),
        )
        return (0, 0, width, height), fitted
    return (0, 0, width, height), (geometry.width, geometry.height)


def _centred_part(width: int, height: int, geometry: Geometry) -> Box:
    scale = min(width / geometry.width, height / geometry.height) * geometry.crop_fraction
    if geometry.crop_fraction == 1:
        part_width, part_height = geometry.width * scale, geometry.height * scale
        left, top = (width - part_width) / 2, (height - part_height) / 2
        # Rounding may move a side outside the image by 1e-15, which Pillow rejects.
        return max(left, 0), max(top, 0), min(left + part_width, width), min(top + part_height, height)
    left, right = _whole_pixels(width, geometry.width, scale)
    top, bottom = _whole_pixels(height, geometry.height, scale)
    return left, top, right, bottom


def _whole_pixels(side: int, wanted: int, scale: float) -> tuple[float, float]:
    """Return where the crop begins and ends, aligned to whole pixels of the resized image.

    Pretrained networks were evaluated on such crops (resize to 256, crop 224): a crop that is off by half a
    pixel changes the label of one image in thirty.
    """
    resized = max(wanted, int(side / scale + 1e-6))  # length of the whole side, rounded down
    begin = round((resized - wanted) / 2)
    return begin * side / resized, min(float(side), (begin + wanted) * side / resized)


def _opaque(pixels: Pixels, background: int) -> Pixels:
    """Blend (H, W, 2 or 4) onto a grey level: (H, W, 1 or 3)."""
    height, width, channels = pixels.shape
    opaque = np.empty((height, width, channels - 1), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)  # at once: a step takes ten times the memory of its pixels
    for top in range(0, height, rows):
        strip = pixels[top : top + rows]
        colours, alpha = strip[:, :, :-1], strip[:, :, -1:].astype(np.uint16)
        # 255 * 255 + 127 fits in 16 bits.
        opaque[top : top + rows] = (colours * alpha + (255 - alpha) * np.uint16(background) + 127) // 255
    return opaque


def _in_colour(pixels: Pixels, channels: int) -> Pixels:
    """Convert grey to three equal channels, or RGB to luma (ITU-R BT.601)."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:  # noqa: PLR2004 - RGB
        return pixels.repeat(3, axis=2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, np.newaxis]


def _on_background(pixels: Pixels, geometry: Geometry) -> Pixels:
    height, width, channels = pixels.shape
    canvas = np.full((geometry.height, geometry.width, channels), geometry.background, np.uint8)
    top, left = (geometry.height - height) // 2, (geometry.width - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas
