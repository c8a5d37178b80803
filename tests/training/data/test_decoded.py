"""Decoding once: what the cache gives is what the files give, and it never outlives their content."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from training.data.decoded import decode_files

GEOMETRY = Geometry(height=8, width=9, channels=3)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three pictures of noise, and a file that is none between them."""
    random = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.png", "b.png", "broken.png", "c.png")]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    paths[2].write_text("no picture")
    return paths


def test_the_cache_gives_what_decoding_gives(files: list[Path], tmp_path: Path) -> None:
    """Fresh, written and read again: the same pixels and the same complaints; the second time from disk."""
    plain, reasons = decode_files(files, GEOMETRY)
    assert plain.shape == (4, 8, 9, 3)
    assert list(reasons) == [2]
    assert "no known image format" in reasons[2]
    assert not plain[2].any()
    for _ in range(2):
        cached, complaints = decode_files(files, GEOMETRY, tmp_path / "cache")
        np.testing.assert_array_equal(cached, plain)
        assert complaints == reasons
        assert isinstance(cached, np.memmap)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the images and the complaints, nothing unfinished


@pytest.mark.parametrize("change", ["content", "geometry", "order", "damage"])
def test_another_content_geometry_or_order_is_decoded_anew(
    change: str, files: list[Path], tmp_path: Path
) -> None:
    """Nothing stale and nothing broken comes out of the cache."""
    cache, geometry = tmp_path / "cache", GEOMETRY
    decode_files(files, geometry, cache)
    if change == "content":
        files[0].write_bytes(files[1].read_bytes())
    if change == "geometry":
        geometry = Geometry(height=8, width=9, channels=3, fit="pad")
    if change == "order":
        files.reverse()
    if change == "damage":
        (written,) = cache.glob("*.npy")
        written.write_bytes(written.read_bytes()[:100])
    images, reasons = decode_files(files, geometry, cache)
    expected, complaints = decode_files(files, geometry)
    np.testing.assert_array_equal(images, expected)
    assert reasons == complaints


def test_what_is_mapped_can_be_written_to_without_changing_the_cache(
    files: list[Path], tmp_path: Path
) -> None:
    """Torch takes only arrays that it could write to; the file stays as it is."""
    for _ in range(2):
        images, _reasons = decode_files(files, GEOMETRY, tmp_path / "cache")
        before = images[0].copy()
        images[0] = 7
    np.testing.assert_array_equal(before, decode_files(files, GEOMETRY)[0][0])
