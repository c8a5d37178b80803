"""Encodes images as messages: bytes, paths, numpy arrays and PIL images."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageOps

from serving.errors import InvalidPixels, InvalidRequest, UndecodableImage
from serving.pb.lenserve.v1 import classifier_pb2 as pb

ClientImage = bytes | str | os.PathLike[str] | npt.NDArray[np.uint8] | PilImage.Image

_PLAIN_MODES = ("L", "LA", "RGB", "RGBA")  # modes that raw pixels can represent
_PNG_MODES = ("1", "L", "P", "RGB", "I;16")  # PNG keeps their transparent colour, TIFF does not


def encode_image(image: ClientImage) -> pb.Image:
    """Encode an image as a message.

    Args:
        image: the bytes or the path of an encoded file; an array (H, W) or (H, W, C) uint8, C in 1..4, 0-255;
            or a PIL image, whose EXIF orientation is applied.

    Raises:
        ImageError: the file or the PIL image cannot be read, or the array's shape or dtype is wrong.
        InvalidRequest: the type is not supported.
    """
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    if isinstance(image, (str, os.PathLike)):
        try:
            return pb.Image(encoded=Path(image).read_bytes())
        except OSError as error:
            raise UndecodableImage(f"{image} cannot be read: {error.strerror}") from error
    if isinstance(image, PilImage.Image):
        return _encode_pil(image)
    if isinstance(image, np.ndarray):
        return _encode_pixels(image)
    raise InvalidRequest(
        f"{type(image).__name__} is not an image: expected bytes, a path, an array or a PIL image"
    )


def _encode_pil(image: PilImage.Image) -> pb.Image:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _PLAIN_MODES and "transparency" not in upright.info:
            return _encode_pixels(np.asarray(upright))
        buffer = io.BytesIO()
        if upright.mode in _PNG_MODES:
            upright.save(buffer, "PNG", compress_level=1)
        else:
            upright.save(
                buffer, "TIFF", compression=None
            )  # the default is the file's format, which may be lossy
    except (
        OSError,
        ValueError,
        SyntaxError,
    ) as error:  # Pillow reads lazily, and raises these for broken files
        raise UndecodableImage(f"the PIL image cannot be read: {error}") from error
    return pb.Image(encoded=buffer.getvalue())


def _encode_pixels(pixels: npt.NDArray[Any]) -> pb.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise InvalidPixels(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, width, 1..4]"
        )
    height, width, channels = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)  # noqa: PLR2004 - (H, W, C)
    return pb.Image(pixels=pb.Pixels(height=height, width=width, channels=channels, data=pixels.tobytes()))
