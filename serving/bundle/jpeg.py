"""JPEG files straight through libjpeg-turbo: the pixels that Pillow gives, in two thirds of its time.

Knows no limits, no orientation and no errors: what is not plainly a sound picture is left to Pillow.
"""

import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOURS = {1: "GRAY", 3: "RGB"}


def decode_jpeg(encoded: bytes, *, width: int, height: int, channels: int) -> npt.NDArray[np.uint8] | None:
    """Decode a sound JPEG file, by the accurate transform and with smooth chroma as Pillow does.

    Args:
        encoded: the file, of at most the limit on bytes.
        width: what the caller found in the file, and checked against the limit on pixels.
        height: the same.
        channels: 1 or 3.

    Returns: (height, width, channels) uint8, or None where the file is damaged or of a rarer kind, or where
        libjpeg-turbo reads another size from it than the caller: a file that shows two faces could be a bomb.
    """
    try:
        if simplejpeg.decode_jpeg_header(encoded)[:2] != (height, width):
            return None
        # strict: the least damage, such as a missing end, is an error and not a grey rectangle
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, _COLOURS[channels], strict=True)
    except ValueError:
        return None
    return pixels
