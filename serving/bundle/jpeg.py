"""JPEG files straight through libjpeg-turbo: the pixels that Pillow gives, in two thirds of its time.

Knows no limits, no orientation and no errors: what is not plainly a sound picture is left to Pillow.
"""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOURS = {1: "GRAY", 3: "RGB"}

# ITU-T T.81, table B.1. All but these stand before a segment that begins with its own length: 00 is a stuffed
# byte of data, FF a fill byte, 01 and D0 to D7 stand alone.
_MARKER_WITH_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_SCAN = b"\xda"
_MOST_SEGMENTS = 10_000
_END_OF_IMAGE = b"\xd9"


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


def count_scans(encoded: bytes, *, most: int) -> int:
    """Count the passes that a decoder makes over all of the picture; more than `most` are not counted on.

    A progressive file makes about ten. But 75 bytes are enough for one, and where the picture has 50 million
    pixels it costs 10 ms: half a megabyte could keep a core busy for half a minute.
    """
    looks_like_scans = encoded.count(b"\xff" + _START_OF_SCAN)
    if looks_like_scans <= most:
        return looks_like_scans  # previews inside and films behind included
    scans, position = 0, 2
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER_WITH_SEGMENT.search(encoded, position)
        if marker is None or marker[1] == _END_OF_IMAGE or scans > most:
            return scans
        scans += marker[1] == _START_OF_SCAN
        length = int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
        position = marker.end() + max(length, 2)  # what is shorter than its own length is libjpeg's to refuse
    return most + 1  # a file of nothing but markers: counting on would itself take seconds
