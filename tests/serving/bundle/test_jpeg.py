"""JPEG: exactly Pillow's pixels; damaged and rare files are left to Pillow."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from serving.bundle import ImageLimits, decode_image
from serving.bundle.jpeg import count_scans, decode_jpeg
from serving.errors import ImageTooLarge, UndecodableImage

PHOTOGRAPH = Image.fromarray(load_sample_images().images[0])  # 640 x 427
WIDTH, HEIGHT = PHOTOGRAPH.size


def encode(image: Image.Image = PHOTOGRAPH, **options: Any) -> bytes:
    """A JPEG file by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(encoded: bytes) -> np.ndarray:
    """The reference: (H, W, C)."""
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def edited(encoded: bytes, place: int, value: int) -> bytes:
    """The file with one byte of its frame header (ITU-T T.81, B.2.2) replaced."""
    start = encoded.index(b"\xff\xc0")
    return encoded[: start + place] + bytes([value]) + encoded[start + place + 1 :]


@pytest.mark.parametrize("quality", [20, 75, 93, 100])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"optimize": True, "restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
)
def test_photographs_are_pillows_to_the_bit(options: dict[str, Any], quality: int) -> None:
    """Each way of storing colour, at any quality."""
    encoded = encode(quality=quality, **options)
    pixels = decode_jpeg(encoded, width=WIDTH, height=HEIGHT, channels=3)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, by_pillow(encoded))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (17, 33), (1, 300), (300, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_all_sizes_are_pillows_to_the_bit(mode: str, size: tuple[int, int]) -> None:
    """Even if blocks of 8 or 16 do not fill the image."""
    encoded = encode(PHOTOGRAPH.resize(size).convert(mode))
    pixels = decode_jpeg(encoded, width=size[0], height=size[1], channels=len(mode))
    assert pixels is not None
    np.testing.assert_array_equal(pixels, by_pillow(encoded))


def test_a_damaged_file_is_rejected() -> None:
    """A missing end, a cut in the middle or a wrong byte gives None."""
    whole = encode(quality=90)
    flipped = whole[:20_000] + b"\xff\x00\xff\xd9" + whole[20_004:]
    for damaged in (whole[:-2], whole[: len(whole) // 2], flipped, whole[:100], b"\xff\xd8\xff", b""):
        assert decode_jpeg(damaged, width=WIDTH, height=HEIGHT, channels=3) is None


def test_damage_that_pillow_tolerates_is_tolerated() -> None:
    """Extra bytes before a marker cause a warning here, but Pillow decodes all of the file."""
    whole = encode(restart_marker_rows=1)
    start = whole.index(b"\xff\xd1")  # the second restart marker
    padded = whole[:start] + b"\x12\x34\x56" + whole[start:]
    assert decode_jpeg(padded, width=WIDTH, height=HEIGHT, channels=3) is None
    np.testing.assert_array_equal(decode_image(padded, ImageLimits()), by_pillow(whole))


def test_a_missing_end_is_undecodable() -> None:
    """A grey rectangle for the missing half would be classified as if it were there."""
    half = encode()[: len(encode()) // 2]
    with pytest.raises(UndecodableImage, match="truncated"):
        decode_image(half, ImageLimits())


def test_another_size_than_the_checked_one_is_refused() -> None:
    """Only the size that was checked against the limits is decoded."""
    assert decode_jpeg(encode(), width=WIDTH, height=HEIGHT + 1, channels=3) is None
    assert decode_jpeg(encode(), width=WIDTH + 1, height=HEIGHT, channels=3) is None


def test_a_file_that_claims_to_be_huge_is_refused_by_its_header() -> None:
    """65,280 x 427 pixels, claimed only by the frame header."""
    huge = edited(encode(), 7, 0xFF)
    with pytest.raises(ImageTooLarge, match="the limit is 1000000"):
        decode_image(huge, ImageLimits(max_pixels=1_000_000))


def test_a_second_frame_header_does_not_smuggle_another_size() -> None:
    """Two headers, small and large, in either order: refused, or the size that was checked."""
    whole = encode(PHOTOGRAPH.resize((64, 64)))
    start = whole.index(b"\xff\xc0")
    length = 2 + int.from_bytes(whole[start + 2 : start + 4], "big")
    small, large = whole[start : start + length], bytearray(whole[start : start + length])
    large[5:9] = b"\x20\x00\x20\x00"  # 8192 x 8192
    for first, second in ((small, bytes(large)), (bytes(large), small)):
        forged = whole[:start] + first + second + whole[start + length :]
        with pytest.raises((ImageTooLarge, UndecodableImage)):
            decode_image(forged, ImageLimits(max_pixels=64 * 64))


@pytest.mark.parametrize("bits", [12, 16, 0])
def test_other_depths_are_undecodable(bits: int) -> None:
    """Both decoders only read 8 bits per sample."""
    with pytest.raises(UndecodableImage):
        decode_image(edited(encode(), 4, bits), ImageLimits())


def test_cmyk_is_left_to_pillow() -> None:
    """Adobe's CMYK and YCCK need an inversion that only Pillow does."""
    encoded = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    assert np.abs(decode_image(encoded, ImageLimits()).astype(int) - (255, 0, 0)).max() <= 4
    ycck = encoded.replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\x02")
    assert ycck != encoded
    np.testing.assert_array_equal(
        decode_image(ycck, ImageLimits()), np.asarray(Image.open(io.BytesIO(ycck)).convert("RGB"))
    )


def with_scans(count: int, hidden: bytes = b"") -> bytes:
    """A small progressive image whose second scan is repeated, perhaps behind other bytes."""
    whole = encode(Image.new("RGB", (64, 64), "red"), progressive=True)
    starts = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    second = whole[starts[1] : starts[2]]
    second = second[: second.index(b"\xff\xc4")]  # without the next scan's Huffman table
    return whole[: starts[1]] + (hidden + second) * (count - len(starts)) + whole[starts[1] :]


@pytest.mark.parametrize("hidden", [b"", b"\xff\x01", b"\xff\xd3", b"\xff\xff", b"\xff\xfe\x00\x05abc"])
def test_endless_scans_are_refused(hidden: bytes) -> None:
    """A scan of 50 million pixels takes 10 ms and 75 bytes. Stray markers and comments do not hide scans."""
    assert count_scans(with_scans(100, hidden), limit=100) == 100
    assert decode_image(with_scans(100), ImageLimits()).shape == (64, 64, 3)
    with pytest.raises(ImageTooLarge, match="more than 100 scans"):
        decode_image(with_scans(101, hidden), ImageLimits())


def test_bytes_that_look_like_scans_are_not_counted() -> None:
    """Cameras embed previews and append films: these are neither decoded nor counted."""
    comment = b"\xff\xfe" + (2 + 1000).to_bytes(2, "big") + b"\xff\xda" * 500
    whole = encode()
    crowded = whole[:2] + comment + whole[2:] + b"\xff\xda" * 500
    assert count_scans(crowded, limit=100) == 1
    np.testing.assert_array_equal(decode_image(crowded, ImageLimits()), by_pillow(whole))


def test_several_pictures_in_one_file_give_the_first() -> None:
    """Cameras append previews (MPO): the first image counts, as in every format."""
    buffer = io.BytesIO()
    PHOTOGRAPH.save(buffer, "MPO", save_all=True, append_images=[PHOTOGRAPH.resize((64, 64))])
    assert decode_image(buffer.getvalue(), ImageLimits()).shape == (HEIGHT, WIDTH, 3)
