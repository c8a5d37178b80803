"""known-images.npy: the training images of arrays, and their labels."""

from pathlib import Path

import numpy as np

from training.champion.known_images import (
    first_of_equal,
    prefixes,
    read_image_labels,
    read_known_images,
    write_known_images,
)
from training.data import Dataset
from training.data.relabelled import SEVERAL
from training.data.splits import Split

LABELS = ("a", "b")


def _split(*values: int, labels: tuple[int, ...]) -> Split:
    """Images of one value each."""
    images = np.array(values, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)  # (N, 2, 2, 1)
    return Split(images, np.array(labels, np.int64), tuple(map(str, values)))


DATASET = Dataset(
    LABELS, _split(1, 2, 3, 3, labels=(0, 1, 0, 1)), _split(4, labels=(1,)), _split(5, labels=(0,))
)


def test_digests_and_labels_are_read_back(tmp_path: Path) -> None:
    """Test images have labels, but the network was not trained on them; an image may have several labels."""
    write_known_images(DATASET, tmp_path / "known.npy")
    one, two, three, four, five = prefixes(_split(1, 2, 3, 4, 5, labels=(0,) * 5).images).tolist()
    known = read_known_images(tmp_path / "known.npy")
    assert known is not None
    assert set(known.tolist()) == {one, two, three, four}
    assert read_image_labels(tmp_path / "known.npy", LABELS) == {
        one: "a",
        two: "b",
        three: SEVERAL,
        four: "b",
        five: "a",
    }


def test_files_of_earlier_releases_have_no_labels(tmp_path: Path) -> None:
    """They are digests alone."""
    digests = prefixes(DATASET.train.images)
    np.save(tmp_path / "known.npy", digests)
    known = read_known_images(tmp_path / "known.npy")
    assert known is not None
    assert known.tolist() == digests.tolist()
    assert read_image_labels(tmp_path / "known.npy", LABELS) == {}


def test_a_missing_or_damaged_file_knows_nothing(tmp_path: Path) -> None:
    """Cut off, or of other values, or with labels that the version does not have."""
    path = tmp_path / "known.npy"
    assert read_known_images(path) is None
    assert read_image_labels(path, LABELS) == {}
    write_known_images(DATASET, path)
    assert read_image_labels(path, ("a",)) == {}
    path.write_bytes(path.read_bytes()[:-5])
    assert read_known_images(path) is None
    np.save(path, np.zeros(3))
    assert read_known_images(path) is None


def test_of_equal_images_the_first_is_kept() -> None:
    """In the given order, and only of those asked for."""
    images = np.array([3, 5, 3, 7, 5, 3], np.uint8).reshape(6, 1, 1, 1)
    assert first_of_equal(images, np.arange(6)).tolist() == [0, 1, 3]
    assert first_of_equal(images, np.array([2, 3, 4, 5])).tolist() == [2, 3, 4]
