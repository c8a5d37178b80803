"""Decodes JPEG files with libjpeg-turbo: the same pixels as Pillow, in two thirds of the time.

Has no limits, orientation or errors: damaged and rare files are left to Pillow.
"""

import re
import struct

import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOURS = {1: "GRAY", 3: "RGB"}

# ITU-T T.81, table B.1. Every marker but these precedes a segment that begins with its length: 00 is a
# stuffed data byte, FF a fill byte, 01 and D0 to D7 have no segment.
_MARKER_WITH_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_SCAN = b"\xda"
_MOST_SEGMENTS = 10_000
_START = b"\xff\xd8"
_SEGMENT = struct.Struct(">BBH")  # the mark, the kind, and the length, which counts itself
_MARK, _SCAN, _LENGTH_BYTES = 0xFF, 0xDA, 2
_COMPONENTS_AT = 9  # bytes after the mark of a frame's head
_BASELINE_FRAMES = frozenset((0xC0, 0xC1))
_WITH_DIRECTORIES = frozenset((0xE1, 0xE2))  # APP1 with EXIF, and APP2 with MPF
_ENTRY_BYTES = 12
# Tables, restart intervals, the other application segments and comments.
_OTHER_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xE0, *range(0xE3, 0xF0), 0xFE))
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


def is_simple(encoded: bytes, max_parts: int) -> bool:
    """Whether a file has one scan, and few segments before it. Reading stops where it does not look so.

    Args:
        encoded: the file.
        max_parts: see `decoder_work.py`: three a segment, and more for directories of metadata.
    """
    if not encoded.startswith(_START):
        return False
    at, parts, components = len(_START), 0, 0
    try:
        while parts < max_parts:
            mark, kind, length = _SEGMENT.unpack_from(encoded, at)
            if mark != _MARK or length < _LENGTH_BYTES:
                return False
            parts += 3
            if kind == _SCAN:
                # libjpeg reads no other scan if the first one has all components.
                return components > 0 and encoded[at + _SEGMENT.size] == components
            if kind in _BASELINE_FRAMES:
                components = encoded[at + _COMPONENTS_AT]
            elif kind in _WITH_DIRECTORIES:
                parts += length // _ENTRY_BYTES
            elif kind not in _OTHER_SEGMENTS:
                return False
            at += _SEGMENT.size - _LENGTH_BYTES + length
    except (struct.error, IndexError):
        pass
    return False


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
