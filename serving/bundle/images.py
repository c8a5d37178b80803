"""Encoded bytes -> decoded pixels, with limits on bytes and pixels. Independent of models.

A decoded image is uint8 (height, width, channels): 1 grey, 2 grey + alpha, 3 RGB or 4 RGB + alpha.
"""

import io
import re
from collections.abc import Callable
from typing import Annotated

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from pydantic import Field

from serving.bundle.decoder_work import (
    MAX_PARTS,
    check_comments,
    check_samples,
    check_tiff_directory,
    counted_file,
    orientation_of,
)
from serving.bundle.jpeg import count_scans, decode_jpeg, is_simple
from serving.bundle.manifest import Strict
from serving.errors import EmptyImage, ImageTooLarge, InvalidPixels, UndecodableImage

Pixels = npt.NDArray[np.uint8]

# Pillow has dozens more decoders; hostile bytes reach only these.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What files of these formats are called, in lower case: how images are found in a directory.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)

# Above this, Pillow warns of decompression bombs, so our limits must not exceed it.
PILLOW_MAX_PIXELS = 89_478_485

# The largest side of a JPEG. Resizing takes memory in proportion to the longer side: a thin image of few
# pixels and few bytes could cost a gigabyte.
MAX_SIDE = 65_535

# Maximum scans of a progressive JPEG: ten are usual. Each costs time, even if it has few bytes.
MAX_SCANS = 100

_WEBP_HEAD = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)  # short of memory, Pillow does not even know the format

# What a decoder may need for a pixel: a progressive JPEG takes 6 bytes for coefficients, and 4 for samples.
_DECODER_BYTES_PER_PIXEL = 12

_STRIP_PIXELS = 2**20

_JPEG_CHANNELS = {"L": 1, "RGB": 3}
_WIDE_GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N")

# EXIF 2.32, tag 0x0112: the transposition that turns the image upright.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {  # (H, W, C) -> views of it
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}

# TIFF 6.0, section 8.
_BITS_PER_SAMPLE_TAG = 258
_PHOTOMETRIC_TAG = 262
_WHITE_IS_ZERO = 0
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323


# Also the types of options: bounds and descriptions are those of every command that has them.
MaxImageBytes = Annotated[int, Field(ge=1, description="maximum bytes of one encoded image")]
MaxImagePixels = Annotated[
    int,
    Field(
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="maximum pixels of one image (width times height), checked before decoding",
    ),
]


class ImageLimits(Strict):
    """Limits on one image."""

    max_bytes: MaxImageBytes = 16 * 2**20
    max_pixels: MaxImagePixels = 50_000_000
    max_parts: Annotated[int, Field(ge=1)] = MAX_PARTS  # reads of the file: see decoder_work.py


DEFAULT_LIMITS = ImageLimits()


def check_encoded_size(size_bytes: int, limits: ImageLimits) -> None:
    """Check the size of a file before it is decoded.

    Raises:
        EmptyImage: there are no bytes.
        ImageTooLarge: there are too many.
    """
    if not size_bytes:
        raise EmptyImage("the image is empty: 0 bytes")
    if size_bytes > limits.max_bytes:
        raise ImageTooLarge(f"the image has {size_bytes} bytes, the limit is {limits.max_bytes}")


def decode_image(encoded: bytes, limits: ImageLimits) -> Pixels:
    """Decode the first frame of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM, and apply its EXIF orientation.

    Returns: (H, W, C) uint8, 0-255; C is 1 grey, 2 grey + alpha, 3 RGB or 4 RGB + alpha.

    Raises:
        EmptyImage: there are no bytes.
        ImageTooLarge: too many bytes, pixels or scans, or a side above 65,535 pixels.
        UndecodableImage: the format is unknown or the file is damaged.
        MemoryError: there is too little memory.
    """
    check_encoded_size(len(encoded), limits)
    pixels = 0
    try:
        check_tiff_directory(encoded)
        is_simple_jpeg = is_simple(encoded, limits.max_parts)
        file = io.BytesIO(encoded) if is_simple_jpeg else counted_file(encoded, limits.max_parts)
        with Image.open(file, formats=FORMATS) as image:
            pixels = image.width * image.height
            _check_size(image.width, image.height, limits)
            if not is_simple_jpeg:
                _check_work(image, encoded, limits)
            samples, turn = _samples(image, encoded), _TURNS.get(orientation_of(image))
        del image  # its pixels
        return samples if turn is None else np.ascontiguousarray(turn(samples))
    except (ImageTooLarge, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # The warning is raised only if warnings are errors; otherwise _check_size rejects the image.
        raise ImageTooLarge(
            f"the image has more pixels than the limit of {limits.max_pixels}: {error}"
        ) from error
    except Exception as error:  # Pillow's parsers raise many kinds of errors
        detail = "unknown image format"
        if not isinstance(error, UnidentifiedImageError) or _WEBP_HEAD.match(encoded):
            _check_memory(pixels or limits.max_pixels)  # 0: WebP's decoder failed before it said the size
            detail = str(error)
        raise UndecodableImage(f"the image cannot be decoded: {detail} ({len(encoded)} bytes)") from error


def check_pixels(pixels: npt.NDArray[np.generic], limits: ImageLimits) -> Pixels:
    """Check raw pixels, which need no `decode_image`.

    Args:
        pixels: (H, W) or (H, W, C) uint8, C in 1..4.
        limits: only max_pixels applies.

    Returns: (H, W, C) uint8, 0-255.

    Raises:
        EmptyImage: a side is 0.
        ImageTooLarge: too many pixels, or a side above 65,535 pixels.
        InvalidPixels: the dtype or shape is wrong.
    """
    if pixels.dtype != np.uint8:
        raise InvalidPixels(f"pixels are {pixels.dtype}, expected uint8")
    if pixels.ndim == 2:  # noqa: PLR2004 - (H, W)
        pixels = pixels[:, :, np.newaxis]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):  # noqa: PLR2004 - (H, W, C)
        raise InvalidPixels(
            f"pixels have shape {list(pixels.shape)}, expected [height, width] or [height, width, 1..4]"
        )
    height, width, _ = pixels.shape
    if not height or not width:
        raise EmptyImage(f"the image is empty: {width} x {height} pixels")
    _check_size(width, height, limits)
    return pixels.astype(np.uint8, copy=False)


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels, the limit is {limits.max_pixels}"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageTooLarge(f"the image has {width} x {height} pixels, the limit for a side is {MAX_SIDE}")


def _check_memory(pixels: int) -> None:
    """Raise MemoryError if a decoder had too little: WebP's and JPEG's call the file broken then.

    The memory is reserved and given back unused: nothing of it is written.
    """
    np.empty(min(pixels, PILLOW_MAX_PIXELS) * _DECODER_BYTES_PER_PIXEL, np.uint8)


def _check_work(image: Image.Image, encoded: bytes, limits: ImageLimits) -> None:
    """Check what a decoder does besides the pixels of the image."""
    if isinstance(image, JpegImageFile):
        if count_scans(encoded, limit=MAX_SCANS) > MAX_SCANS:
            raise ImageTooLarge(f"the image has more than {MAX_SCANS} scans, the limit")
    elif isinstance(image, TiffImageFile):
        tags = image.tag_v2  # a tile is decoded whole, however small the image is
        _check_size(tags.get(_TILE_WIDTH_TAG, 1), tags.get(_TILE_LENGTH_TAG, 1), limits)
    elif isinstance(image, BmpImageFile | PpmImageFile):
        check_samples(image)
        check_comments(image, encoded)


def _samples(image: Image.Image, encoded: bytes) -> Pixels:
    if isinstance(image, JpegImageFile) and image.mode in _JPEG_CHANNELS:
        channels = _JPEG_CHANNELS[image.mode]
        pixels = decode_jpeg(encoded, width=image.width, height=image.height, channels=channels)
        if pixels is not None:
            return pixels
    image.load()
    # Pillow scales a PNM of more than 8 bits to 16 bits, in mode I.
    if image.mode in _WIDE_GREY_MODES or (image.mode, image.format) == ("I", "PPM"):
        return _narrow(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"samples of mode {image.mode} have no known range")
    target = {"1": "L", "L": "L", "LA": "LA", "La": "LA"}.get(image.mode, "RGB")
    if target == "RGB" and (image.mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info):
        target = "RGBA"
    elif target == "L" and "transparency" in image.info:
        target = "LA"
    return _array(image if image.mode == target else image.convert(target))


def _array(image: Image.Image) -> Pixels:
    """Return the samples of an image, (H, W, C)."""
    if image.width * image.height <= _STRIP_PIXELS:  # `_in_strips` takes 4 us more
        samples = np.asarray(image)
        return samples if samples.ndim == 3 else samples[:, :, np.newaxis]  # noqa: PLR2004 - (H, W, C)
    return _in_strips(image, lambda part: part if part.ndim == 3 else part[:, :, np.newaxis])  # noqa: PLR2004


def _in_strips(
    image: Image.Image, convert: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]
) -> Pixels:
    """Convert an image strip by strip, to (H, W, C): Pillow copies twice what it gives to numpy."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    whole: Pixels | None = None
    for top in range(0, height, rows):
        part = image if height <= rows else image.crop((0, top, width, min(top + rows, height)))
        strip = convert(np.asarray(part)).astype(np.uint8, copy=False)
        if part is image:
            return strip
        if whole is None:
            whole = np.empty((height, width, strip.shape[2]), np.uint8)
        whole[top : top + rows] = strip
    if whole is None:
        raise EmptyImage(f"the image is empty: {width} x {height} pixels")
    return whole


def _narrow(image: Image.Image) -> Pixels:
    """Scale grey samples of 12 or 16 bits to 8 bits, (H, W, 1 or 2); Pillow's conversion would clip them."""
    highest = 65535
    is_inverted = False
    if isinstance(image, TiffImageFile):
        highest = 2 ** int(image.tag_v2[_BITS_PER_SAMPLE_TAG][0]) - 1
        # Pillow inverts 8 bits, but not 16.
        is_inverted = image.tag_v2[_PHOTOMETRIC_TAG] == _WHITE_IS_ZERO
    transparent = image.info.get("transparency")

    def narrow(wide: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        samples = wide.astype(np.uint32)  # (H, W)
        if is_inverted:
            samples = highest - samples
        grey = (samples * 255 + highest // 2) // highest
        if transparent is None:
            return grey[:, :, np.newaxis]  # (H, W, 1)
        return np.stack([grey, np.where(samples == transparent, 0, 255)], axis=2)  # (H, W, 2)

    return _in_strips(image, narrow)
