"""Images on disk behave like an array."""

from pathlib import Path

import numpy as np
import pytest

from training.data.storage.disk_images import DiskImages, chunks, feed_digest, take
from training.errors import DataError

OFFSET = 100
PIXELS = np.random.default_rng(0).integers(0, 256, (300, 40, 50, 3), dtype=np.uint8)


@pytest.fixture
def stored(tmp_path: Path) -> DiskImages:
    """Three hundred noise images, after a hundred other bytes."""
    path = tmp_path / "images"
    path.write_bytes(bytes(OFFSET) + PIXELS.tobytes())
    return DiskImages(path, OFFSET, PIXELS.shape)


def test_it_is_indexed_as_an_array_is(stored: DiskImages) -> None:
    """Indexing by number, slice and indices, with repeats and with none, gives writable arrays."""
    order = np.random.default_rng(1).permutation(300)
    for index in (0, -1, np.int64(7), slice(2, 9, 3), slice(0), [3, 3, 0], order, np.array([], np.intp)):
        found = stored[index]  # type: ignore[index]
        np.testing.assert_array_equal(found, PIXELS[index])
        assert found.flags.writeable
    assert len(stored) == len(list(stored)) == 300
    with pytest.raises(IndexError):
        stored[300]


def test_a_part_is_taken_without_reading(stored: DiskImages) -> None:
    """Repeated selection keeps the right images in order, without reading the file."""
    order = np.random.default_rng(1).permutation(300)
    taken = take(take(stored, order), slice(10, 20))
    assert isinstance(taken, DiskImages)
    assert taken.shape == (10, 40, 50, 3)
    np.testing.assert_array_equal(taken[:], PIXELS[order][10:20])
    np.testing.assert_array_equal(take(PIXELS, order), PIXELS[order])


def test_parts_and_digests_are_those_of_an_array(stored: DiskImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks cover all images once; array and disk give the same digest."""
    monkeypatch.setattr("training.data.storage.disk_images._CHUNK_BYTES", 7 * PIXELS[0].nbytes)
    sizes = [len(part) for part in chunks(stored)]
    assert (len(sizes), set(sizes[:-1]), sizes[-1]) == (43, {7}, 6)
    fed = bytearray()
    feed_digest(fed.extend, [stored, PIXELS[:5, :, ::2], stored.take(slice(0))])
    assert bytes(fed) == PIXELS.tobytes() + PIXELS[:5, :, ::2].tobytes()


def test_a_file_that_is_gone_or_cut_off_is_named(stored: DiskImages, tmp_path: Path) -> None:
    """The message names the file, and where it ends."""
    path = tmp_path / "images"
    with path.open("r+b") as file:
        file.truncate(OFFSET + PIXELS[:200].nbytes - 1)
    np.testing.assert_array_equal(stored[:199], PIXELS[:199])
    with pytest.raises(DataError, match=rf"{path} cannot be read: the file ends within image 199"):
        stored[150:]
    path.unlink()
    with pytest.raises(DataError, match=f"{path} cannot be read: .*No such file"):
        stored[0]
