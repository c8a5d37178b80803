"""Antialiased resizing: triangle and cubic filters whose width grows with the scale, as in Pillow.

fast_image_resize computes the same pixels as Pillow, with SIMD. It has no wheel for Linux on ARM; there,
Pillow resizes: pixels may differ by 1 from rounding, and by more where a cubic overshoot is clipped, because
Pillow chooses the order of the two passes.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

try:
    import cykooz_resizer as fast
except ImportError:  # pragma: no cover - depends on the platform
    FAST = False
else:
    FAST = True

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
Size = tuple[int, int]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
if FAST:
    _PIXEL_TYPES = {1: fast.PixelType.U8, 3: fast.PixelType.U8x3}
    _ALGORITHMS = {
        "bilinear": fast.ResizeAlg.convolution(fast.FilterType.bilinear),
        "bicubic": fast.ResizeAlg.convolution(fast.FilterType.catmull_rom),
    }

# A quarter of a typical level-2 cache. At twice the size, a 500x375 photograph takes 1.4 times as long.
_BAND_BYTES = 384 * 1024

# Radius of each filter, in source or result pixels, whichever are larger.
_REACH = 2


def resize(pixels: Pixels, size: Size, *, box: Box, interpolation: str) -> Pixels:
    """Resize a part of an image.

    Args:
        pixels: (H, W, C) uint8, C of 1 or 3.
        size: (width, height) of the result, in pixels.
        box: (left, top, right, bottom) of the part, in pixels, possibly fractional, within the image.
        interpolation: nearest, bilinear or bicubic (a = -0.5).

    Returns: (size[1], size[0], C) uint8, possibly a view of `pixels`.
    """
    left, top, right, bottom = box
    if right - left == size[0] and bottom - top == size[1] and left % 1 == top % 1 == 0:
        return pixels[int(top) : int(bottom), int(left) : int(right)]
    if interpolation == "nearest" or not FAST:
        return _resize_with_pillow(pixels, size, box, interpolation)
    return _resize_fast(pixels, size, box, interpolation)


def _resize_fast(pixels: Pixels, size: Size, box: Box, interpolation: str) -> Pixels:
    left, top, right, bottom = box
    rows = _needed(top, bottom, size[1], pixels.shape[0])
    columns = _needed(left, right, size[0], pixels.shape[1])
    needed = pixels[rows, columns]
    height, _, channels = needed.shape
    # One axis per call: with both axes and a crop at once, fast_image_resize 6.1 reads beyond its buffer for
    # cubic filters, and the process crashes. Horizontal first, as in Pillow: the rounding is the same.
    narrow = _across(needed, size[0], left - columns.start, right - left, interpolation)
    source = fast.ImageData(size[0], height, _PIXEL_TYPES[channels], narrow)
    down = fast.ImageData(*size, _PIXEL_TYPES[channels])
    fast.Resizer().resize(source, down, _part(interpolation, 0, top - rows.start, size[0], bottom - top))
    return np.frombuffer(down.get_buffer(), np.uint8).reshape(size[1], size[0], channels)


def _across(pixels: Pixels, new_width: int, left: float, span: float, interpolation: str) -> bytes:
    """Resize horizontally, one band of rows at a time, so that the copies stay in the cache."""
    height, width, channels = pixels.shape
    kind = _PIXEL_TYPES[channels]
    resizer = fast.Resizer()
    rows_a_band = math.ceil(height / math.ceil(pixels.nbytes / _BAND_BYTES))
    bands = []
    for first in range(0, height, rows_a_band):
        band = pixels[first : first + rows_a_band]
        source = fast.ImageData(width, len(band), kind, band.tobytes())
        across = fast.ImageData(new_width, len(band), kind)
        resizer.resize(source, across, _part(interpolation, left, 0, span, len(band)))
        bands.append(across.get_buffer())
    return b"".join(bands)


def _needed(low: float, high: float, size: int, length: int) -> slice:
    """Return the pixels of an axis that contribute to the result: the part plus the filter's radius."""
    reach = _REACH * max((high - low) / size, 1)
    return slice(max(math.floor(low - reach), 0), min(math.ceil(high + reach), length))


# Images from one source often have the same size, and building the options costs as much as resizing a digit.
@functools.lru_cache(maxsize=256)
def _part(interpolation: str, left: float, top: float, width: float, height: float) -> "fast.ResizeOptions":
    return fast.ResizeOptions(_ALGORITHMS[interpolation], crop_box=fast.CropBox(left, top, width, height))


def _resize_with_pillow(pixels: Pixels, size: Size, box: Box, interpolation: str) -> Pixels:
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    resized = image.resize(size, _FILTERS[interpolation], box=box)
    return np.asarray(resized).reshape(size[1], size[0], channels)
