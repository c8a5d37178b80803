"""Decoded pixels -> uint8 (height, width, channels) exactly as a manifest says.

The one implementation: training fits, evaluates and exports through it, and the server serves through it.
"""

import numpy as np
from PIL import Image

from serving.bundle.images import Pixels
from serving.bundle.manifest import Geometry

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

Box = tuple[float, float, float, float]
Size = tuple[int, int]


def apply_geometry(pixels: Pixels, geometry: Geometry) -> Pixels:
    """Colour, then crop or pad, then resize.

    Args:
        pixels: (H, W, C) uint8, C in 1..4, as `decode_image` gives them.
        geometry: what the network takes.

    Returns: (geometry.height, geometry.width, geometry.channels) uint8.
    """
    wanted = (geometry.height, geometry.width, geometry.channels)
    if pixels.shape == wanted and geometry.crop_fraction == 1:
        return pixels
    image = _in_colour(pixels, geometry)
    box, size = frame(image.size, geometry)
    resized = image.resize(size, _RESAMPLING[geometry.interpolation], box=box)
    if size != (geometry.width, geometry.height):
        resized = _on_background(resized, geometry)
    return np.asarray(resized).reshape(wanted)


def frame(size: Size, geometry: Geometry) -> tuple[Box, Size]:
    """Which part of the image is used, and how large it becomes.

    Args:
        size: width and height of the image.
        geometry: what the network takes.

    Returns: box (left, top, right, bottom) in the image, and width and height to resize it to.
    """
    width, height = size
    if geometry.fit == "crop":
        scale = min(width / geometry.width, height / geometry.height) * geometry.crop_fraction
        part_width, part_height = geometry.width * scale, geometry.height * scale
        left, top = (width - part_width) / 2, (height - part_height) / 2
        # Rounding may put a side beyond the image by 1e-15, which Pillow refuses.
        box = (max(left, 0), max(top, 0), min(left + part_width, width), min(top + part_height, height))
        return box, (geometry.width, geometry.height)
    if geometry.fit == "pad":
        scale = min(geometry.width / width, geometry.height / height)
        fitted = (
            min(geometry.width, max(1, round(width * scale))),
            min(geometry.height, max(1, round(height * scale))),
        )
        return (0, 0, width, height), fitted
    return (0, 0, width, height), (geometry.width, geometry.height)


def _in_colour(pixels: Pixels, geometry: Geometry) -> Image.Image:
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode=_MODES[channels])
    if channels in (2, 4):  # with alpha
        opaque = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (geometry.background,) * 3 + (255,))
        image = Image.alpha_composite(backdrop, opaque)
    wanted = _MODES[geometry.channels]
    return image if image.mode == wanted else image.convert(wanted)


def _on_background(image: Image.Image, geometry: Geometry) -> Image.Image:
    fill = geometry.background if geometry.channels == 1 else (geometry.background,) * 3
    canvas = Image.new(image.mode, (geometry.width, geometry.height), fill)
    canvas.paste(image, ((geometry.width - image.width) // 2, (geometry.height - image.height) // 2))
    return canvas
