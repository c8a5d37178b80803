"""Encoded bytes: every kind of image is decoded upright, anything else is one of our errors."""

import io
import resource
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import ValidationError

from serving.bundle import ImageLimits, check_pixels, decode_image
from serving.bundle.images import MAX_SIDE, PILLOW_MAX_PIXELS, Pixels
from serving.errors import EmptyImage, ImageError, ImageTooLarge, InvalidPixels, UndecodableImage

LIMITS = ImageLimits()

# Pillow warns of broken metadata and goes on, and so does a server: here a warning must not become a refusal.
as_in_production = pytest.mark.filterwarnings("ignore:::PIL")


def decode(encoded: bytes) -> Pixels:
    """Decode under the default limits."""
    return decode_image(encoded, LIMITS)


def encode(pixels: npt.NDArray[np.generic] | Image.Image, image_format: str, **options: object) -> bytes:
    """Let Pillow write pixels, (H, W) or (H, W, C)."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(*shape: int) -> Pixels:
    """The same noise for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def blocks(*shape: int) -> Pixels:
    """An image of flat 16 x 16 blocks, which JPEG hardly changes."""
    height, width, *channels = shape
    return noise(height // 16, width // 16, *channels).repeat(16, axis=0).repeat(16, axis=1)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, *, bits: int, colour_type: int, rows: Sequence[bytes], extra: bytes = b""
) -> bytes:
    """A hand-made PNG with unfiltered rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    samples = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", samples) + chunk(b"IEND", b"")
    )


def grey_tiff(
    width: int, samples: bytes, *, bits: int, photometric: int = 1, sample_format: int = 1
) -> bytes:
    """A hand-made TIFF of one row: little-endian, uncompressed, one sample per pixel."""
    samples += b"\0" * (len(samples) % 2)
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: 1,
        279: len(samples),
    }
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(samples))
    return header + samples + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A hand-made EXIF block: tag, type, count, value of 4 bytes."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + b"\0" * 4


# Large images


MODES = ["L", "LA", "RGB", "RGBA", "P", "I;16"]


@pytest.mark.parametrize(
    ("mode", "orientation", "scale"),
    [
        *((mode, orientation, 1) for mode in MODES for orientation in range(1, 9)),
        *((mode, 6, 100) for mode in MODES),
    ],
)
def test_images_have_the_pixels_of_pillow(mode: str, orientation: int, scale: int) -> None:
    """Large ones are copied in strips; all are turned afterwards."""
    side = (13 * scale, 10 * scale)
    pixels: npt.NDArray[np.generic] = noise(*side, *([] if mode in ("L", "P", "I;16") else [len(mode)]))
    image = Image.fromarray(pixels)
    expected = image
    if mode == "P":
        image = image.convert("RGB").quantize(16)
        expected = image.convert("RGB")
    elif mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    tags = Image.Exif()
    tags[0x112] = orientation
    encoded = encode(image, "PNG", exif=tags.tobytes(), compress_level=0)
    expected.getexif()[0x112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(expected))
    np.testing.assert_array_equal(
        decode(encoded), upright if upright.ndim == 3 else upright[:, :, np.newaxis]
    )


def test_a_large_image_is_held_twice_at_most() -> None:
    """Besides in the decoder. It was held five times: 49 million pixels took 936 MiB."""
    tags = Image.Exif()
    tags[0x112] = 6
    encoded = encode(Image.new("RGBA", (2000, 1500)), "PNG", exif=tags.tobytes())
    tracemalloc.start()
    try:
        size = decode(encoded).nbytes
        assert tracemalloc.get_traced_memory()[1] < 2.5 * size
    finally:
        tracemalloc.stop()


# Formats


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("PPM", {}),
    ],
)
def test_lossless_formats_give_exact_pixels(image_format: str, options: dict[str, object]) -> None:
    """RGB is decoded exactly."""
    pixels = noise(21, 34, 3)
    np.testing.assert_array_equal(decode(encode(pixels, image_format, **options)), pixels)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}),
        ("WEBP", {"quality": 95}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_formats_give_near_pixels(image_format: str, options: dict[str, object]) -> None:
    """RGB is decoded nearly exactly."""
    pixels = blocks(64, 96, 3)
    decoded = decode(encode(pixels, image_format, **options))
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_greyscale_is_one_exact_channel(image_format: str) -> None:
    """Grey stays grey: (H, W, 1)."""
    pixels = noise(21, 34)
    np.testing.assert_array_equal(decode(encode(pixels, image_format)), pixels[:, :, np.newaxis])


def test_greyscale_gif_is_three_equal_channels() -> None:
    """A GIF has only palettes: greys are decoded as exact RGB, which geometry turns back into grey."""
    pixels = noise(21, 34)
    np.testing.assert_array_equal(decode(encode(pixels, "GIF")), np.stack([pixels] * 3, axis=2))


def test_greyscale_jpeg_is_one_near_channel() -> None:
    """A grey JPEG is (H, W, 1)."""
    pixels = blocks(32, 48)
    decoded = decode(encode(pixels, "JPEG", quality=95))
    assert decoded.shape == (32, 48, 1)
    assert np.abs(decoded[:, :, 0].astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_one_bit_is_black_and_white(image_format: str) -> None:
    """1-bit images are 0 and 255, never 0 and 1."""
    pixels = noise(9, 13) > 127
    decoded = decode(encode(pixels, image_format))
    np.testing.assert_array_equal(decoded[:, :, 0], pixels * 255)


@pytest.mark.parametrize(
    ("bits", "row", "expected"),
    [(1, b"\x50", [0, 255, 0, 255]), (2, b"\x1b", [0, 85, 170, 255]), (4, b"\x05\xaf", [0, 85, 170, 255])],
)
def test_few_bits_are_scaled_to_the_full_range(bits: int, row: bytes, expected: list[int]) -> None:
    """White is 255 at any depth of a PNG."""
    decoded = decode(png(4, 1, bits=bits, colour_type=0, rows=[row]))
    assert decoded[0, :, 0].tolist() == expected


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_not_clipped(image_format: str) -> None:
    """Each of the 65,536 values comes out as value / 257, rounded: 65535 is 255 and 255 is 1."""
    wide = np.arange(65_536, dtype=np.uint16).reshape(256, 256)  # (H, W)
    expected = (wide.astype(int) + 128) // 257
    decoded = decode(encode(wide, image_format))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected[:, :, np.newaxis])


def test_sixteen_bits_of_big_endian_tiff_are_scaled() -> None:
    """Both byte orders are read."""
    wide = np.array([[0, 256, 65_535]], ">u2")
    assert decode(encode(wide, "TIFF"))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("text", [b"P5 2 1 1023\n\x03\xff\x02\x00", b"P2 2 1 1023 1023 512\n"])
def test_any_maximum_of_a_pgm_is_white(text: bytes) -> None:
    """10 bits, binary and plain: the stated maximum becomes 255."""
    assert decode(text)[0, :, 0].tolist() == [255, 128]


def test_twelve_bits_of_tiff_are_scaled() -> None:
    """Pillow returns 12 bits as if they were 16, sixteen times too dark."""
    assert decode(grey_tiff(2, b"\xff\xf8\x00", bits=12))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(("bits", "samples"), [(8, b"\x00\xff"), (16, b"\x00\x00\xff\xff")])
def test_tiff_whose_white_is_zero_is_inverted(bits: int, samples: bytes) -> None:
    """Scanners write such files: 0 is white at any depth."""
    assert decode(grey_tiff(2, samples, bits=bits, photometric=0))[0, :, 0].tolist() == [255, 0]


def test_sixteen_bits_of_colour_keep_their_high_bytes() -> None:
    """An RGB PNG of 16 bits is within one of value / 257, and exact at both ends."""
    values = np.array([[[0, 65_535, 32_768], [257, 255, 4_000]]], ">u2")  # (1, 2, 3)
    decoded = decode(png(2, 1, bits=16, colour_type=2, rows=[values.tobytes()]))
    assert decoded.shape == (1, 2, 3)
    np.testing.assert_array_equal(decoded, values >> 8)
    assert np.abs(decoded - values / 257).max() <= 1


def test_sixteen_bits_with_alpha_keep_it() -> None:
    """RGBA of 16 bits is (H, W, 4)."""
    values = np.array([[[65_535, 32_768, 0, 40_000]]], ">u2")
    decoded = decode(png(1, 1, bits=16, colour_type=6, rows=[values.tobytes()]))
    assert decoded.tolist() == [[[255, 128, 0, 156]]]


CMYK_COLOURS = [
    (0, 0, 0, 0),
    (0, 255, 255, 0),
    (255, 0, 255, 0),
    (255, 255, 0, 0),
    (0, 0, 0, 255),
    (0, 0, 0, 128),
]
RGB_COLOURS = [(255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (127, 127, 127)]


@pytest.mark.parametrize(("ink", "colour"), list(zip(CMYK_COLOURS, RGB_COLOURS, strict=True)))
@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_is_decoded_to_rgb(
    image_format: str, ink: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    """CMYK is decoded as the colour that it prints; Pillow writes it inverted, as Adobe does."""
    encoded = encode(Image.new("CMYK", (16, 16), ink), image_format)
    assert (b"Adobe" in encoded) == (image_format == "JPEG")
    decoded = decode(encoded)
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded.astype(int) - colour).max() <= 4


def palette_picture() -> Image.Image:
    """One pixel each of red, green and blue."""
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes_are_looked_up(image_format: str) -> None:
    """Indices are replaced by colours."""
    decoded = decode(encode(palette_picture(), image_format))
    assert decoded.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_transparent_entries_of_a_palette_become_alpha(image_format: str) -> None:
    """One index is transparent, the others are opaque."""
    decoded = decode(encode(palette_picture(), image_format, transparency=1))
    assert decoded[:, :, 3].tolist() == [[255, 0, 255]]
    assert decoded[0, 0].tolist() == [255, 0, 0, 255]


def test_half_transparent_entries_of_a_palette_become_alpha() -> None:
    """A PNG may give each index its own alpha."""
    decoded = decode(encode(palette_picture(), "PNG", transparency=bytes([10, 200, 255])))
    assert decoded.tolist() == [[[255, 0, 0, 10], [0, 255, 0, 200], [0, 0, 255, 255]]]


@pytest.mark.parametrize(
    ("image_format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_alpha_is_kept(image_format: str, options: dict[str, object]) -> None:
    """RGBA is decoded exactly; geometry chooses the background."""
    pixels = noise(9, 11, 4)
    pixels[:, :, 3] |= 1  # WebP forgets the colour of what is fully transparent
    np.testing.assert_array_equal(decode(encode(pixels, image_format, **options)), pixels)


def test_grey_with_alpha_has_two_channels() -> None:
    """LA is decoded with alpha last."""
    pixels = noise(9, 11, 2)
    decoded = decode(encode(Image.fromarray(pixels, mode="LA"), "PNG"))
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize(
    ("bits", "colour_type", "row", "transparent", "expected"),
    [
        (1, 0, b"\xa0", b"\x00\x01", [[255, 0], [0, 255]]),
        (8, 0, b"\x05\xff", b"\x00\x05", [[5, 0], [255, 255]]),
        (16, 0, b"\x05\x05\xff\xff", b"\x05\x05", [[5, 0], [255, 255]]),
        (8, 2, b"\x01\x02\x03\x04\x05\x06", b"\0\x01\0\x02\0\x03", [[1, 2, 3, 0], [4, 5, 6, 255]]),
    ],
)
def test_a_transparent_colour_becomes_alpha(
    bits: int, colour_type: int, row: bytes, transparent: bytes, expected: list[list[int]]
) -> None:
    """A PNG may name one colour as transparent instead of storing alpha, at any depth."""
    encoded = png(2, 1, bits=bits, colour_type=colour_type, rows=[row], extra=chunk(b"tRNS", transparent))
    assert decode(encoded).tolist() == [expected]


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(image_format: str) -> None:
    """Later frames are not even decoded."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    encoded = encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(encoded)) as animation:
        assert getattr(animation, "n_frames", 1) == 3
    assert (decode(encoded)[:, :, :3] == (255, 0, 0)).all()


def test_pages_of_a_tiff_give_the_first() -> None:
    """The same as for animations."""
    pages = [Image.fromarray(noise(5, 6, 3)), Image.new("RGB", (9, 9))]
    encoded = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decode(encoded), noise(5, 6, 3))


# Orientation


def as_stored(upright: Pixels, orientation: int) -> Pixels:
    """An upright image as a turned camera stores it (EXIF 2.32, tag Orientation)."""
    # "The 0th row is at the visual top" and so on, from the standard's own table.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),  # row 0 is the right side, column 0 the top
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),  # row 0 is the left side, column 0 the bottom
    }[orientation]
    return np.ascontiguousarray(stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
    ],
)
def test_images_are_decoded_upright(image_format: str, options: dict[str, object], orientation: int) -> None:
    """Each of the eight orientations is undone exactly once."""
    upright = blocks(32, 64, 3)
    tags = Image.Exif()
    tags[0x0112] = orientation
    decoded = decode(encode(as_stored(upright, orientation), image_format, exif=tags, **options))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= (8 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_image_is_turned(mode: str) -> None:
    """A quarter turn works on each of the modes that Pillow decodes to."""
    tags = Image.Exif()
    tags[0x0112] = 6
    image = Image.new(mode, (7, 3))
    assert decode(encode(image, "PNG", exif=tags)).shape[:2] == (7, 3)
    assert decode(encode(image, "PNG")).shape[:2] == (3, 7)


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")
BROKEN_BESIDE_ORIENTATION = {
    "an offset beyond the end": (0x010F, 2, 500, b"\x9f\x86\x01\0"),
    "an unknown type": (0x010F, 77, 1, b"\x09\0\0\0"),
    "a sub-block that contains itself": (0x8825, 4, 1, b"\x08\0\0\0"),
    "a sub-block beyond the end": (0x8769, 4, 1, b"\x70\x11\x01\0"),
    "a division by zero": (0x011A, 5, 1, b"\x08\0\0\0"),
    "text for a number": (0x0100, 2, 4, b"\xff\xfe\xfd\xfc"),
    "text for a fraction": (0x011B, 2, 4, b"abc\0"),
}


@as_in_production
@pytest.mark.parametrize("broken", BROKEN_BESIDE_ORIENTATION)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_other_broken_tags_are_ignored(image_format: str, broken: str) -> None:
    """A camera's broken metadata affects neither the pixels nor the orientation."""
    block = exif(TURNED, BROKEN_BESIDE_ORIENTATION[broken])
    assert decode(encode(noise(2, 3, 3), image_format, exif=block)).shape == (3, 2, 3)


@as_in_production
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0garbage, garbage",
        exif((0x0112, 3, 1, b"\x09\0\0\0")),
        exif((0x0112, 3, 1, b"\0\0\0\0")),
        exif((0x0112, 2, 2, b"6\0\0\0")),
        exif(TURNED)[:20],
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_an_invalid_orientation_is_ignored(image_format: str, block: bytes) -> None:
    """The image is decoded as stored."""
    assert decode(encode(noise(2, 3, 3), image_format, exif=block)).shape == (2, 3, 3)


# Refusals


def test_no_bytes_are_an_empty_image() -> None:
    """0 bytes have their own error."""
    with pytest.raises(EmptyImage, match="0 bytes"):
        decode(b"")


def test_the_byte_limit_is_reported_with_both_numbers() -> None:
    """A file of exactly the limit is decoded; one byte more is rejected before it is read."""
    encoded = encode(noise(4, 4, 3), "PNG")
    assert decode_image(encoded, ImageLimits(max_bytes=len(encoded))).shape == (4, 4, 3)
    with pytest.raises(ImageTooLarge, match=f"has {len(encoded)} bytes, the limit is {len(encoded) - 1}"):
        decode_image(encoded, ImageLimits(max_bytes=len(encoded) - 1))


def test_the_pixel_limit_is_reported_with_both_numbers() -> None:
    """An image of exactly the limit is decoded; one pixel more is rejected."""
    encoded = encode(noise(4, 5, 3), "PNG")
    assert decode_image(encoded, ImageLimits(max_pixels=20)).shape == (4, 5, 3)
    with pytest.raises(ImageTooLarge, match="5 x 4 = 20 pixels, the limit is 19"):
        decode_image(encoded, ImageLimits(max_pixels=19))


@as_in_production
@pytest.mark.parametrize("side", [7_072, 9_500, 13_000, 14_000, 60_000, 2**31 - 1])
def test_decompression_bombs_are_refused_before_they_grow(side: int) -> None:
    """A PNG of 100 bytes that claims up to 4 * 10^18 pixels costs no memory; the error has both numbers."""
    bomb = png(side, side, bits=8, colour_type=2, rows=[])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge) as refused:
        decode(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024
    assert str(side * side) in str(refused.value)
    assert str(LIMITS.max_pixels) in str(refused.value)


def test_bombs_are_too_large_where_warnings_are_errors() -> None:
    """Between one and two times its limit, Pillow only warns; our error is the same."""
    with pytest.raises(ImageTooLarge, match=r"50000000.*90250000"):
        decode(png(9_500, 9_500, bits=8, colour_type=0, rows=[]))


@pytest.mark.parametrize(("width", "height"), [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (1, 40_000_000)])
def test_thin_images_with_a_long_side_are_refused(width: int, height: int) -> None:
    """A thin image of few pixels would cost much memory to resize."""
    with pytest.raises(ImageTooLarge, match=f"{width} x {height} pixels, the limit for a side is {MAX_SIDE}"):
        decode(png(width, height, bits=8, colour_type=0, rows=[]))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * 2**20))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(200 * 2**20))),
    ],
)
def test_metadata_that_explodes_costs_no_memory(extra: bytes) -> None:
    """200 MiB of zeros in a comment or a colour profile are not unpacked."""
    encoded = png(1, 1, bits=8, colour_type=0, rows=[b"\x07"], extra=extra)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(UndecodableImage):
        assert decode(encoded).tolist() == [[[7]]]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 * 1024


@pytest.mark.parametrize(
    "image_format", ["EPS", "ICO", "TGA", "PCX", "SGI", "PDF", "ICNS", "DDS", "JPEG2000"]
)
def test_formats_we_did_not_choose_are_refused(image_format: str) -> None:
    """Pillow reads dozens of formats, EPS by running a program; hostile bytes reach only seven decoders."""
    encoded = encode(Image.new("RGB", (16, 16)), image_format)
    with pytest.raises(UndecodableImage, match=rf"unknown image format \({len(encoded)} bytes\)"):
        decode(encoded)


@pytest.mark.parametrize(
    ("pixels", "mode"), [(np.array([[1, 2]], np.int32), "I"), (np.array([[0.5, 2]], np.float32), "F")]
)
def test_samples_of_unknown_range_are_refused(pixels: npt.NDArray[np.generic], mode: str) -> None:
    """A TIFF of 32-bit integers or floats does not say which value is white."""
    with pytest.raises(UndecodableImage, match=f"samples of mode {mode} have no known range"):
        decode(encode(pixels, "TIFF"))


def test_signed_samples_are_refused() -> None:
    """The same for signed 16 bits."""
    with pytest.raises(UndecodableImage, match="no known range"):
        decode(grey_tiff(2, b"\0\0\xff\x7f", bits=16, sample_format=2))


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 1), (1, 0)])
def test_pictures_without_pixels_are_refused(width: int, height: int) -> None:
    """A file that claims no pixels is broken."""
    with pytest.raises(ImageError):
        decode(png(width, height, bits=8, colour_type=0, rows=[b"\0"]))


def decoded_or_refused(encoded: bytes) -> bool:
    """Whether the bytes are an image; if not, they must raise one of our errors."""
    try:
        pixels = decode(encoded)
    except ImageError:
        return False
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] in (1, 2, 3, 4)
    assert pixels.size > 0
    return True


def samples() -> dict[str, bytes]:
    """One small valid file of each kind."""
    frames = [Image.fromarray(noise(7, 9, 3)), Image.new("RGB", (9, 7))]
    tags = Image.Exif()
    tags[0x0112] = 6
    animated = {"save_all": True, "append_images": frames[1:]}
    return {
        "jpeg": encode(noise(7, 9, 3), "JPEG", exif=tags),
        "progressive jpeg": encode(noise(17, 9, 3), "JPEG", progressive=True),
        "cmyk jpeg": encode(Image.new("CMYK", (9, 7), (9, 99, 0, 5)), "JPEG"),
        "png": encode(noise(7, 9, 3), "PNG", exif=tags),
        "16-bit png": encode(noise(7, 9).astype(np.uint16) * 257, "PNG"),
        "palette png": encode(palette_picture(), "PNG", transparency=1),
        "apng": encode(frames[0], "PNG", **animated),
        "gif": encode(frames[0], "GIF", **animated),
        "webp": encode(noise(7, 9, 4), "WEBP", exif=tags),
        "animated webp": encode(frames[0], "WEBP", **animated),
        "bmp": encode(noise(7, 9, 3), "BMP"),
        "tiff": encode(noise(7, 9, 3), "TIFF", exif=tags),
        "16-bit tiff": encode(noise(7, 9).astype(np.uint16) * 257, "TIFF"),
        "lzw tiff": encode(noise(7, 9, 3), "TIFF", compression="tiff_lzw"),
        "ppm": encode(noise(7, 9, 3), "PPM"),
        "pgm in words": b"P2 3 2 255 1 2 3 4 5 6\n",
    }


SAMPLES = samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_valid(name: str) -> None:
    """The files that the next tests damage are valid."""
    assert decoded_or_refused(SAMPLES[name])


@as_in_production
@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_is_a_picture_or_a_refusal(name: str) -> None:
    """Cut anywhere, a file gives pixels or an ImageError, and most cuts are noticed."""
    whole = SAMPLES[name]
    undecodable = sum(not decoded_or_refused(whole[:length]) for length in range(len(whole)))
    assert undecodable >= len(whole) * 0.2


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "bmp", "gif", "lzw tiff", "ppm"])
def test_half_a_file_is_undecodable(name: str) -> None:
    """A broken upload is rejected with its length."""
    half = SAMPLES[name][: len(SAMPLES[name]) // 2]
    with pytest.raises(UndecodableImage, match=rf"\({len(half)} bytes\)"):
        decode(half)


@as_in_production
@settings(deadline=None, max_examples=300)
@given(encoded=st.binary(min_size=1, max_size=200))
@example(encoded=b"P6 0 0 255\n")
@example(encoded=b"P5 1 1 0\n\0")
@example(encoded=b"GIF89a\0\0\0\0\0\0\0;")
@example(encoded=b"II*\0\x08\0\0\0")
def test_random_bytes_are_refused(encoded: bytes) -> None:
    """Only an ImageError is raised."""
    with pytest.raises(ImageError):
        decode(encoded)


@as_in_production
@settings(deadline=None, max_examples=300)
@given(
    start=st.sampled_from(
        [whole[:4] for whole in SAMPLES.values()] + [b"RIFF\x40\0\0\0WEBP", b"II*\0\x08\0\0\0"]
    ),
    rest=st.binary(max_size=200),
)
def test_random_bytes_after_a_true_beginning_are_a_picture_or_a_refusal(start: bytes, rest: bytes) -> None:
    """Behind a valid beginning, too, only an ImageError is raised."""
    decoded_or_refused(start + rest)


@as_in_production
@settings(deadline=None, max_examples=1500)
@given(data=st.data(), name=st.sampled_from(sorted(SAMPLES)))
def test_mutated_files_are_a_picture_or_a_refusal(data: st.DataObject, name: str) -> None:
    """Bytes replaced, inserted or removed anywhere, in one to three places."""
    encoded = SAMPLES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(encoded)))
        removed = data.draw(st.integers(0, 8))
        encoded = encoded[:start] + data.draw(st.binary(max_size=8)) + encoded[start + removed :]
    decoded_or_refused(encoded)


# Raw pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_raw_pixels_pass_as_they_are(channels: int) -> None:
    """(H, W, 1..4) uint8 is what a decoded image is."""
    pixels = noise(3, 5, channels)
    np.testing.assert_array_equal(check_pixels(pixels, LIMITS), pixels)


def test_raw_grey_gets_its_channel() -> None:
    """(H, W) is a grey image."""
    pixels = noise(3, 5)
    np.testing.assert_array_equal(check_pixels(pixels, LIMITS), pixels[:, :, np.newaxis])


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint16", "int64", "bool", "S1", "O"])
def test_raw_pixels_of_other_types_are_refused(dtype: str) -> None:
    """The error has the found and the expected dtype."""
    with pytest.raises(InvalidPixels, match=rf"pixels are {np.dtype(dtype)}, expected uint8"):
        check_pixels(np.zeros((2, 2, 3), dtype), LIMITS)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 0), (2, 2, 5), (1, 2, 2, 3), (2, 3, 224)])
def test_raw_pixels_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """The error has the found and the expected shape."""
    with pytest.raises(InvalidPixels) as refused:
        check_pixels(np.zeros(shape, np.uint8), LIMITS)
    assert str(list(shape)) in str(refused.value)
    assert "[height, width, 1..4]" in str(refused.value)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0, 3, 3), (3, 0, 1)])
def test_raw_pixels_of_no_size_are_an_empty_image(shape: tuple[int, ...]) -> None:
    """The error has both sides."""
    with pytest.raises(EmptyImage, match=f"{shape[1]} x {shape[0]} pixels"):
        check_pixels(np.zeros(shape, np.uint8), LIMITS)


def test_raw_pixels_have_the_same_limits() -> None:
    """On pixels and on a side, with both numbers."""
    pixels = np.zeros((4, 5, 3), np.uint8)
    assert check_pixels(pixels, ImageLimits(max_pixels=20)).shape == (4, 5, 3)
    with pytest.raises(ImageTooLarge, match="5 x 4 = 20 pixels, the limit is 19"):
        check_pixels(pixels, ImageLimits(max_pixels=19))
    with pytest.raises(ImageTooLarge, match=f"the limit for a side is {MAX_SIDE}"):
        check_pixels(np.zeros((1, MAX_SIDE + 1), np.uint8), LIMITS)


@pytest.mark.parametrize(
    "limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": PILLOW_MAX_PIXELS + 1}, {"max_sides": 3}]
)
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    """Our limit must not exceed Pillow's."""
    with pytest.raises(ValidationError):
        ImageLimits.model_validate(limits)


def test_the_limit_of_pillow_is_the_one_we_know() -> None:
    """If Pillow changes its limit, ours must follow."""
    assert Image.MAX_IMAGE_PIXELS == PILLOW_MAX_PIXELS


_SCARCE = """
import io, resource, sys
from PIL import Image
from serving.bundle.images import ImageLimits, decode_image
image = Image.new("RGB", (2500, 2500), (10, 20, 30))
files = {}
for kind, options in [
    ("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("GIF", {}),
    ("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"}),
]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    files[f"{kind} {options}"] = buffer.getvalue()
noise = Image.effect_noise((1500, 1500), 100).convert("RGB")
noise.save(buffer := io.BytesIO(), "WEBP", lossless=True, method=0)
files["large WEBP"] = buffer.getvalue()
del image, noise, buffer
used_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for free_bytes in (1 * 2**20, 4 * 2**20, 25 * 2**20, 50 * 2**20):
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + free_bytes, resource.RLIM_INFINITY))
    for name, encoded in files.items():
        try:
            decode_image(encoded, ImageLimits(max_bytes=2**30))
        except MemoryError:
            continue
        except Exception as error:
            print(name, free_bytes, error)
"""


def test_a_sound_image_is_never_called_damaged_because_memory_is_short() -> None:
    """Every decoder, with too little memory at several points. Some call the file broken."""
    done = subprocess.run(
        [sys.executable, "-c", _SCARCE],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
