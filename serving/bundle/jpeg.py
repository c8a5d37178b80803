"""Decodes JPEG files with libjpeg-turbo: the same pixels as Pillow, in two thirds of the time.

Has no limits, orientation or errors: damaged and rare files are left to Pillow.
"""

import re

import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOURS = {1: "GRAY", 3: "RGB"}

# ITU-T T.81, table B.1. Every marker but these precedes a segment that begins with its length: 00 is a
# stuffed data byte, FF a fill byte, 01 and D0 to D7 have no segment.
_MARKER_WITH_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_SCAN = b"\xda"
_MOST_SEGMENTS = 10_000
_END_OF_IMAGE = b"\xd9"


def decode_jpeg(encoded: bytes, *, width: int, height: int, channels: int) -> npt.NDArray[np.uint8] | None:
    """Decode an undamaged JPEG file, with the accurate transform and smooth chroma, as Pillow does.

    Args:
        encoded: the file.
        width: as the caller read it from the file and checked it against the limit.
        height: as for width.
        channels: 1 or 3.

    Returns: (height, width, channels) uint8; None if the file is damaged or of a rare kind, or if
        libjpeg-turbo reads a different size: a file with two sizes could be a decompression bomb.
    """
    try:
        if simplejpeg.decode_jpeg_header(encoded)[:2] != (height, width):
            return None
        # strict: any damage, such as a missing end, is an error instead of a grey rectangle
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, _COLOURS[channels], strict=True)
    except ValueError:
        return None
    return pixels


def count_scans(encoded: bytes, *, limit: int) -> int:
    """Count the scans; stop counting above `limit`. In each scan the decoder passes over the whole image.

    A progressive file has about ten scans. A scan of 75 bytes takes 10 ms on an image of 50 million pixels:
    half a megabyte could keep a core busy for a minute.
    """
    looks_like_scans = encoded.count(b"\xff" + _START_OF_SCAN)
    if looks_like_scans <= limit:
        return looks_like_scans  # includes embedded previews and appended data
    scans, position = 0, 2
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER_WITH_SEGMENT.search(encoded, position)
        if marker is None or marker[1] == _END_OF_IMAGE or scans > limit:
            return scans
        scans += marker[1] == _START_OF_SCAN
        length = int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
        position = marker.end() + max(length, 2)  # libjpeg rejects a length below 2
    return limit + 1  # a file that consists of markers: counting all would take seconds
