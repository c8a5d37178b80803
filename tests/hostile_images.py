"""Images of few bytes or pixels that make decoders do much: each names what it is made of, and how much."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial

from PIL import Image

MIB = 2**20
_SHORT, _LONG, _RATIONAL = 3, 4, 5  # types of TIFF 6.0
_BYTES = {_SHORT: 2, _LONG: 4, _RATIONAL: 8}

Entry = tuple[int, int, int, int]  # of a directory: tag, type, count, value or offset


def directory(*entries: Entry) -> bytes:
    """A little-endian TIFF file with one directory, and nothing after it."""
    packed = b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def _encoded(image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, image_format, **options)
    return buffer.getvalue()


def _after(head: bytes, file: bytes, inserted: bytes) -> bytes:
    at = file.index(head) + len(head)
    return file[:at] + inserted + file[at:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    """A PNG of 64 x 64 with these chunks before its pixels."""
    file = _encoded("PNG")
    at = file.index(b"IDAT") - 4
    return file[:at] + b"".join(chunks) + file[at:]


def png_of_chunks(size_bytes: int) -> bytes:
    """Empty chunks of an unknown kind."""
    return png_with(png_chunk(b"prVt", b"") * (size_bytes // 12))


def png_of_texts(texts: int) -> bytes:
    """Texts of 1 kB that inflate to a megabyte each."""
    return png_with(
        *(png_chunk(b"zTXt", b"k%d\0\0" % each + zlib.compress(bytes(MIB - 9), 9)) for each in range(texts))
    )


def png_of_fractions(size_bytes: int) -> bytes:
    """An EXIF orientation that is a million fractions."""
    count = size_bytes // 8
    return png_with(png_chunk(b"eXIf", directory((0x112, _RATIONAL, count, 26)) + bytes(8 * count)))


def jpeg_of_segments(size_bytes: int) -> bytes:
    """Empty application segments."""
    return _after(b"\xff\xd8", _encoded("JPEG"), b"\xff\xef\0\2" * (size_bytes // 4))


def jpeg_of_exif(size_bytes: int) -> bytes:
    """Large EXIF segments, then small ones, which Pillow joins one by one."""
    large, small = b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527), b"\xff\xe1\0\x09Exif\0\0x"
    half = size_bytes // 2
    segments = large * (half // len(large)) + small * (half // len(small))
    return _after(b"\xff\xd8", _encoded("JPEG"), segments)


def jpeg_of_scans(scans: int, *, side: int = 7000) -> bytes:
    """A baseline file, each of whose scans has one component, the first one again and again."""
    file = _encoded("JPEG", subsampling=0)
    frame, scan = file.index(b"\xff\xc0"), file.index(b"\xff\xda")
    head = file[: frame + 5] + struct.pack(">HH", side, side) + file[frame + 9 : scan]
    one = b"\xff\xda\0\x08\1%c%c\0\x3f\0\0\0"
    return head + one % (1, 0) * scans + one % (2, 0x11) + one % (3, 0x11) + b"\xff\xd9"


def gif_of_comments(size_bytes: int) -> bytes:
    """Comments of one character."""
    file = _encoded("GIF")
    at = file.index(b",\0\0\0\0")
    return file[:at] + b"!\xfe\1x\0" * (size_bytes // 5) + file[at:]


def tiff_of_tile(side: int) -> bytes:
    """64 x 64 pixels in one tile, which is decoded whole."""
    pixels = zlib.compress(bytes(MIB), 9)
    entries: list[Entry] = [
        (256, _SHORT, 1, 64),
        (257, _SHORT, 1, 64),
        (258, _SHORT, 1, 8),
        (259, _SHORT, 1, 8),
    ]
    entries += [(262, _SHORT, 1, 1), (277, _SHORT, 1, 1), (322, _LONG, 1, side), (323, _LONG, 1, side)]
    entries += [(324, _LONG, 1, 134), (325, _LONG, 1, len(pixels))]
    return directory(*entries) + pixels


def tiff_of_strips(size_bytes: int) -> bytes:
    """Strips of one byte."""
    count = size_bytes // 8
    at = len(directory(*[(0, 0, 0, 0)] * 9))
    entries: list[Entry] = [
        (256, _SHORT, 1, 1),
        (257, _SHORT, 1, 8),
        (258, _SHORT, 1, 8),
        (259, _SHORT, 1, 1),
    ]
    entries += [(262, _SHORT, 1, 1), (273, _LONG, count, at), (277, _SHORT, 1, 1), (278, _SHORT, 1, 1)]
    entries += [(279, _LONG, count, at + 4 * count)]
    return directory(*entries) + struct.pack("<I", 8) * count + struct.pack("<I", 1) * count


def tiff_of_fractions(size_bytes: int) -> bytes:
    """A resolution that is a million fractions."""
    count = size_bytes // 8
    at = len(directory(*[(0, 0, 0, 0)] * 10))
    entries: list[Entry] = [
        (256, _SHORT, 1, 1),
        (257, _SHORT, 1, 1),
        (258, _SHORT, 1, 8),
        (259, _SHORT, 1, 1),
    ]
    entries += [(262, _SHORT, 1, 1), (273, _LONG, 1, 8), (277, _SHORT, 1, 1), (278, _SHORT, 1, 1)]
    entries += [(279, _LONG, 1, 1), (282, _RATIONAL, count, at)]
    return directory(*entries) + struct.pack("<II", 1, 1) * count


def bmp_of_lines(width: int, height: int) -> bytes:
    """RLE: a pixel, and the end of the line, again and again."""
    rows, offset = b"\1\1\0\0" * height, 54 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 1, 1, 256, 256)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + head + bytes(1024) + rows


def ppm_of_comments(size_bytes: int) -> bytes:
    """A plain file of empty comments."""
    return b"P2\n64 64\n255\n" + b"#\n" * (size_bytes // 2)


def ppm_of_odd_samples(side: int) -> bytes:
    """A maximum of 254, which Pillow scales sample by sample."""
    return b"P5\n%d %d\n254\n" % (side, side) + bytes(side * side)


# Each is far above a limit, and takes a defenceless decoder a second or a hundred megabytes.
HOSTILE: Mapping[str, Callable[[], bytes]] = {
    "png chunks": partial(png_of_chunks, 3 * MIB),
    "jpeg segments": partial(jpeg_of_segments, 4 * MIB),
    "jpeg exif": partial(jpeg_of_exif, 4 * MIB),
    "jpeg scans": partial(jpeg_of_scans, 200),
    "gif comments": partial(gif_of_comments, 4 * MIB),
    "tiff tile": partial(tiff_of_tile, 20_000),
    "tiff strips": partial(tiff_of_strips, 4 * MIB),
    "tiff fractions": partial(tiff_of_fractions, 4 * MIB),
    "bmp lines": partial(bmp_of_lines, 60_000, 400),
    "ppm comments": partial(ppm_of_comments, MIB),
    "ppm odd samples": partial(ppm_of_odd_samples, 1600),
}
