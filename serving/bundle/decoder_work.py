"""Bounds what decoders do besides decoding pixels: hostile files make them do much for few bytes.

Files of 16 MB took Pillow minutes and gigabytes: of empty segments, of comments, of strips, of metadata with
millions of fractions; a tile of one kilobyte took 400 MB. Independent of limits on bytes and pixels.
"""

import io
import re
import struct
from typing import Any, NoReturn

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from serving.errors import ImageTooLarge

# Pillow reads each segment, chunk and block of a file with two to four reads, and keeps most of them. A PNG
# of 16 MB with chunks of 8 KB has 8,000 reads, a JPEG 100. 100,000 reads take Pillow 0.1 to 0.3 s.
MAX_PARTS = 100_000
_JPEG = b"\xff\xd8"
_MAX_JPEG_PARTS = 10_000  # Pillow joins EXIF segments by copying: 700,000 of them took 20 minutes
# Segments of a JPEG that Pillow reads entry by entry, from a copy.
_DIRECTORIES = (b"Exif\0\0", b"MPF\0")
_ENTRY_BYTES = 12

# Codecs that Pillow has in Python only: RLE of BMP, and PPM that is plain or has an unusual maximum. A sample
# takes them up to a microsecond.
_SLOW_CODECS = frozenset({"bmp_rle", "ppm", "ppm_plain"})
MAX_SLOW_SAMPLES = 2**21
_MAX_COMMENTS = 100  # of a plain PPM: Pillow copies the file for each

# Numbers in the directory of a TIFF file. Of the offsets and sizes of strips or tiles, Pillow makes 350 bytes
# each, of a fraction 250.
MAX_TIFF_NUMBERS = 2**17 + 2**10
_TIFF = re.compile(rb"(II|MM)(\x2a\0|\0\x2a|\x2b\0|\0\x2b)")
_BIG = b"\x2b"  # BigTIFF, with offsets of 64 bits
_BYTES_PER_NUMBER = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # by type

_ORIENTATION_TAG = 0x0112  # EXIF 2.32
_UPRIGHT = 1
_EXIF_HEAD = b"Exif\0\0"
_WHOLE_NUMBERS = {3: "H", 4: "I", 8: "h", 9: "i"}  # by type
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def counted_file(encoded: bytes, max_parts: int = MAX_PARTS) -> io.BytesIO:
    """Return a file in memory that is read at most `max_parts` times, then `read` raises ImageTooLarge."""
    if encoded.startswith(_JPEG):
        return _JpegFile(encoded, min(max_parts, _MAX_JPEG_PARTS))
    return _CountedFile(encoded, max_parts)


class _CountedFile(io.BytesIO):
    def __init__(self, encoded: bytes, max_parts: int) -> None:
        super().__init__(encoded)
        self._max_parts = max_parts
        self._parts_left = max_parts

    def read(self, size: int | None = -1, /) -> bytes:
        self._parts_left -= 1
        if self._parts_left < 0:
            self._refuse()
        return super().read(size)

    def _refuse(self) -> NoReturn:
        raise ImageTooLarge(
            f"the image consists of more than {self._max_parts} parts, the limit: remove its metadata, "
            "or save it again"
        )


class _JpegFile(_CountedFile):
    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if data.startswith(_DIRECTORIES):
            self._parts_left -= len(data) // _ENTRY_BYTES
            if self._parts_left < 0:
                self._refuse()
        return data


def check_samples(image: ImageFile) -> None:
    """Check the samples of a file whose codec is slow.

    Raises:
        ImageTooLarge: there are too many.
    """
    samples = image.width * image.height * len(image.getbands())
    if image.tile and image.tile[0][0] in _SLOW_CODECS and samples > MAX_SLOW_SAMPLES:
        raise ImageTooLarge(
            f"the image has {samples} samples in a rare variant of {image.format}, the limit is "
            f"{MAX_SLOW_SAMPLES}: save it as PNG"
        )


def check_comments(image: ImageFile, encoded: bytes) -> None:
    """Check the comments of a plain PPM.

    Raises:
        ImageTooLarge: there are too many.
    """
    if image.tile and image.tile[0][0] == "ppm_plain" and encoded.count(b"#") > _MAX_COMMENTS:
        raise ImageTooLarge(f"the image has more than {_MAX_COMMENTS} comments, the limit: remove them")


def check_tiff_directory(encoded: bytes) -> None:
    """Check the first directory of a TIFF file; do nothing for other files.

    Raises:
        ImageTooLarge: it has too many numbers.
    """
    if not _TIFF.match(encoded):
        return
    is_big = _BIG in encoded[2:4]
    numbers = 0
    for _, kind, count, _ in _directory(encoded, is_big=is_big):
        size = _BYTES_PER_NUMBER.get(kind, 0)
        if size and count * size <= len(encoded):  # Pillow skips the others
            numbers += count
    if numbers > MAX_TIFF_NUMBERS:
        raise ImageTooLarge(
            f"the directory of the TIFF file has {numbers} numbers, the limit is {MAX_TIFF_NUMBERS}: "
            "use larger strips or tiles"
        )


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, if there is none or the metadata is broken.

    Pillow's `getexif` takes 40 us on a photo, and minutes on a hostile one.
    """
    if isinstance(image, TiffImageFile):
        value = image.tag_v2.get(_ORIENTATION_TAG)
        return value if isinstance(value, int) else _UPRIGHT
    found = None
    exif = _exif_of(image.info)
    if exif:
        found = _orientation_in(exif)
    if found is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
        match = _IN_XMP.search(xmp.encode() if isinstance(xmp, str) else xmp) if xmp else None
        found = int(match[1]) if match else _UPRIGHT
    return found


def _exif_of(info: dict[Any, Any]) -> bytes:
    exif: bytes = info.get("exif") or b""
    profile = info.get("Raw profile type exif")  # a text of a PNG, by ImageMagick
    if not exif and profile:
        try:
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return b""
    while exif.startswith(_EXIF_HEAD):
        exif = exif[len(_EXIF_HEAD) :]
    return exif


def _orientation_in(exif: bytes) -> int | None:
    """Return the orientation; 1 if it is not a number, None if there is no such tag."""
    for tag, kind, count, value in _directory(exif, is_big=False):
        if tag == _ORIENTATION_TAG:
            if kind not in _WHOLE_NUMBERS or count != 1:
                return _UPRIGHT
            number: int = struct.unpack_from(_order(exif) + _WHOLE_NUMBERS[kind], value)[0]
            return number
    return None


def _directory(data: bytes, *, is_big: bool) -> list[tuple[int, int, int, bytes]]:
    """Return tag, type, count and value of the entries of the first directory, as far as there are bytes."""
    order = _order(data)
    head, size, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    try:
        (offset,) = struct.unpack_from(order + head, data, 8 if is_big else 4)
        (entries,) = struct.unpack_from(order + size, data, offset)
    except (struct.error, OverflowError):  # cut off
        return []
    start, entry_bytes = offset + struct.calcsize(order + size), struct.calcsize(order + entry)
    entries = min(entries, (len(data) - start) // entry_bytes)
    return list(struct.iter_unpack(order + entry, data[start : start + entries * entry_bytes]))


def _order(data: bytes) -> str:
    return "<" if data.startswith(b"II") else ">"
