"""Encoded images: small sound files of many formats, changed; and what becomes of their pixels."""

import io
import struct
import warnings
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import numpy as np
from PIL import Image, features

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image
from serving.bundle.decoder_messages import silence_decoders
from serving.errors import ImageError
from tests.fuzz.mutations import mutate, number

_LIMITS = ImageLimits(max_bytes=40_000, max_pixels=250_000)
_GEOMETRIES = [
    Geometry(height=28, width=28, channels=1, background=0),
    Geometry(height=32, width=24, channels=3, fit="crop", crop_fraction=0.875, interpolation="bicubic"),
    Geometry(height=20, width=30, channels=3, fit="pad", interpolation="nearest"),
]
_SIDES = ((1, 1), (17, 9), (40, 33))
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageFiles:
    """Files of images."""

    def __init__(self) -> None:
        self._files = list(_sound_files())

    def make(self, random: Random) -> bytes:
        """A file, usually changed."""
        name, encoded = random.choice(self._files)
        choice = random.random()
        if choice < 0.05:
            return encoded
        change = _STRUCTURED.get(name)
        if change is not None and choice < 0.6:
            for _ in range(random.choice((1, 1, 2, 3))):
                encoded = change(random, encoded)
            return encoded
        if choice < 0.65:
            return encoded + random.choice(self._files)[1]
        # Headers decide more than pixels do.
        head = random.choice((24, 64, 256, len(encoded)))
        return mutate(random, encoded[:head], most=4) + encoded[head:]

    async def check(self, made: bytes) -> str:
        """Pixels within the limits, which every geometry accepts, or an error of this image."""
        try:
            pixels = decode_image(made, _LIMITS)
        except ImageError as error:
            return error.reason
        height, width, channels = pixels.shape
        assert pixels.dtype == np.uint8
        assert 1 <= channels <= 4
        assert 1 <= height * width <= _LIMITS.max_pixels
        for geometry in _GEOMETRIES:
            shaped = apply_geometry(pixels, geometry)
            assert shaped.shape == geometry.shape
            assert shaped.dtype == np.uint8
        return "decoded"


def _sound_files() -> Iterator[tuple[str, bytes]]:
    """Yield the name of a format and a file of it."""
    noise = np.random.default_rng(5)
    for width, height in _SIDES:
        samples = noise.integers(0, 256, (height, width, 4), np.uint8)
        samples[: height // 2] = 90
        rgba = Image.fromarray(samples)
        wide = Image.fromarray(noise.integers(0, 65536, (height, width), np.uint16))
        images = {mode: rgba.convert(mode) for mode in ("RGB", "L", "LA", "1", "P", "CMYK", "YCbCr", "LAB")}
        for form, mode, options in _FORMS:
            image = rgba if mode == "RGBA" else wide if mode == "I;16" else images[mode]
            if form == "AVIF" and not features.check("avif"):
                continue
            turned = [image.transpose(Image.Transpose.ROTATE_180)] * 2 if "save_all" in options else []
            buffer = io.BytesIO()
            image.save(buffer, form, append_images=turned, **options)
            yield form, buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif


_FORMS: list[tuple[str, str, dict[str, Any]]] = [
    *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "1", "P", "I;16")),
    ("PNG", "P", {"transparency": 3}), ("PNG", "RGB", {"icc_profile": b"x" * 200, "exif": _exif()}),
    ("PNG", "RGB", {"save_all": True}), ("PNG", "L", {"transparency": 90}), ("PNG", "I;16",
    {"transparency": 90}),
    *(("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK", "YCbCr")),
    ("JPEG", "RGB", {"progressive": True, "exif": _exif()}), ("JPEG", "L", {"progressive": True,
    "quality": 20}),
    ("JPEG", "RGB", {"subsampling": 0, "restart_marker_blocks": 1}), ("JPEG", "RGB", {"optimize": True,
    "comment": b"hello"}),
    *(("WEBP", mode, {}) for mode in ("RGB", "RGBA")), ("WEBP", "RGBA", {"lossless": True, "exif": _exif()}),
    ("WEBP", "RGB", {"save_all": True}),
    *(("GIF", mode, {}) for mode in ("L", "P", "1")), ("GIF", "RGB", {"save_all": True}), ("GIF", "P",
    {"transparency": 1, "interlace": 1}),
    *(("BMP", mode, {}) for mode in ("RGB", "L", "1", "P")),
    *(("TIFF", mode, {}) for mode in ("RGB", "RGBA", "L", "1", "P", "CMYK", "I;16", "LAB")),
    *(("TIFF", "RGB", {"compression": each}) for each in ("tiff_lzw", "tiff_adobe_deflate", "packbits",
    "jpeg")),
    ("TIFF", "1", {"compression": "group4"}), ("TIFF", "L", {"save_all": True, "exif": _exif()}),
    *(("PPM", mode, {}) for mode in ("RGB", "L", "1", "I;16")),
    ("AVIF", "RGB", {}), ("AVIF", "RGBA", {"quality": 30}),
    ("ICO", "RGBA", {}), ("TGA", "RGB", {}), ("JPEG2000", "RGB", {}), ("PCX", "RGB", {}),
]  # fmt: skip


def _change_png(random: Random, encoded: bytes) -> bytes:
    """Change one chunk and repair its checksum, so that what is inside is read."""
    chunks, at = [], len(_PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        end = at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        chunks.append((encoded[at + 4 : at + 8], encoded[at + 8 : end - 4]))
        at = end
    if not chunks:
        return mutate(random, encoded)
    place = random.randrange(len(chunks))
    kind, data = chunks[place]
    choice = random.random()
    if choice < 0.2 and kind == b"IDAT":
        plain = data
        with suppress(zlib.error):
            plain = zlib.decompressobj().decompress(data, 2**20)
        chunks[place] = kind, zlib.compress(mutate(random, plain), 1)
    elif choice < 0.6:
        chunks[place] = kind, mutate(random, data, most=2)
    elif choice < 0.7:
        del chunks[place]
    elif choice < 0.8:
        chunks[place:place] = [chunks[place]] * random.choice((1, 2, 40))
    elif choice < 0.9:
        other = random.choice(
            (
                b"tRNS",
                b"PLTE",
                b"iCCP",
                b"iTXt",
                b"zTXt",
                b"eXIf",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"gAMA",
                b"cHRM",
                b"IEND",
            )
        )
        packed = zlib.compress(bytes(random.choice((10, 10, 2**21))))
        chunks.insert(place, (other, random.choice((data, b"a\0\0" + packed, b"a\0\1\0\0\0" + packed, b""))))
    else:
        random.shuffle(chunks)
    return _PNG_SIGNATURE + b"".join(_png_chunk(random, *each) for each in chunks)


def _png_chunk(random: Random, kind: bytes, data: bytes) -> bytes:
    length = len(data) if random.random() < 0.99 else number(random) % 2**32
    checksum = zlib.crc32(kind + data) if random.random() < 0.98 else 0
    return struct.pack(">I", length) + kind + data + struct.pack(">I", checksum)


def _change_jpeg(random: Random, encoded: bytes) -> bytes:
    """Change one segment and repair its length."""
    segments, at = [], 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF and encoded[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        segments.append((encoded[at + 1], encoded[at + 4 : end]))
        at = end
    if not segments:
        return mutate(random, encoded)
    place = random.randrange(len(segments))
    marker, data = segments[place]
    choice = random.random()
    if choice < 0.6:
        segments[place] = marker, mutate(random, data, most=2)
    elif choice < 0.7:
        del segments[place]
    elif choice < 0.8:
        segments[place:place] = [segments[place]] * random.choice((1, 2, 40))
    elif choice < 0.9:
        segments[place] = random.choice((0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xE1, 0xE2, 0xEE, 0xFE, marker)), data
    else:
        random.shuffle(segments)
    head = b"".join(
        b"\xff" + bytes([kind]) + struct.pack(">H", min(len(each) + 2, 65535)) + each
        for kind, each in segments
    )
    rest = encoded[at:] if random.random() < 0.7 else mutate(random, encoded[at:], most=2)
    return encoded[:2] + head + rest


_STRUCTURED: dict[str, Callable[[Random, bytes], bytes]] = {"PNG": _change_png, "JPEG": _change_jpeg}


@asynccontextmanager
async def open_image_files() -> AsyncIterator[ImageFiles]:
    """Open the target, with decoders as quiet as the server's."""
    with warnings.catch_warnings():
        silence_decoders()
        yield ImageFiles()
