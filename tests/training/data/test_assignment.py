"""splits.csv, and what it says about a later version."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.data.assignment import (
    assignment_of,
    compare,
    read_assignment,
    read_file_labels,
    write_assignment,
)
from training.data.relabelled import SEVERAL
from training.data.splits import Dataset, Split


def digest(name: str) -> bytes:
    """SHA-256 of a name, as that of a file."""
    return hashlib.sha256(name.encode()).digest()


def split(*names: str) -> Split:
    """Images whose content is their name."""
    labels = np.zeros(len(names), np.int64)
    images = np.zeros((len(names), 2, 2, 1), np.uint8)
    return Split(images, labels, names, tuple(map(digest, names)))


def dataset(train: str, validation: str, test: str, removed: str = "") -> Dataset:
    """A data set of images with one-letter names."""
    gone = {f"{name}.png": digest(name) for name in removed}
    return Dataset(("a", "b"), split(*train), split(*validation), split(*test), gone)


def test_the_file_has_a_line_for_each_image(tmp_path: Path) -> None:
    """Names with commas and quotes are read back; an image in two splits counts for the later one."""
    data = Dataset(
        ("a",), split("x, y", "both"), split('"'), split("t"), {"r.png": digest("t"), "s": digest("s")}
    )
    write_assignment(data, tmp_path / "splits.csv")
    text = (tmp_path / "splits.csv").read_text()
    assert text.splitlines()[0] == "split,sha256,label,path"
    assert len(text.splitlines()) == 7
    assert f'train,{digest("x, y").hex()},a,"x, y"' in text
    read = read_assignment(tmp_path / "splits.csv")
    assert read == assignment_of(data)
    assert read is not None
    assert (read[digest("t")], read[digest("s")]) == ("test", "removed")


def test_labels_are_read_back(tmp_path: Path) -> None:
    """Removed images have none; nor have files of earlier releases. Contents may have several."""
    data = dataset("ab", "c", "de", removed="x")
    train = replace(data.train, labels=np.array([1, 0]))
    test = replace(data.test, labels=np.array([1, 0]), digests=(digest("d"), digest("a")))
    data = replace(data, train=train, test=test)
    write_assignment(data, tmp_path / "splits.csv")
    expected = {digest("a"): SEVERAL, digest("b"): "a", digest("c"): "a", digest("d"): "b"}
    assert read_file_labels(tmp_path / "splits.csv") == expected
    (tmp_path / "splits.csv").write_text(f"split,sha256,path\ntrain,{digest('a').hex()},a\n")
    assert read_file_labels(tmp_path / "splits.csv") == {}
    assert read_file_labels(tmp_path / "missing.csv") == {}


def test_a_missing_or_damaged_file_is_no_assignment(tmp_path: Path) -> None:
    """Versions of earlier releases have none."""
    assert read_assignment(tmp_path / "splits.csv") is None
    for content in (b"\xff\xfe", b"split,sha256\ntrain,xyz", b"other\nline"):
        (tmp_path / "splits.csv").write_bytes(content)
        assert read_assignment(tmp_path / "splits.csv") is None


def test_a_comparison_counts_what_each_split_gained() -> None:
    """Grown data: no image moved."""
    earlier, now = dataset("abc", "d", "e"), dataset("abcfg", "d", "eh")
    found = compare(assignment_of(earlier), assignment_of(now))
    assert str(found) == "train gained 2 images, validation 0, test 1; none moved"
    assert str(compare(assignment_of(now), assignment_of(now))) == "the splits are the same"


def test_a_comparison_names_what_moved_and_what_is_gone() -> None:
    """Other splits of the same images: a test image in training is counted by its way."""
    earlier, now = dataset("abc", "d", "ef"), dataset("bcef", "", "d", removed="a")
    found = compare(assignment_of(earlier), assignment_of(now))
    assert found.moved == {("test", "train"): 2, ("validation", "test"): 1}
    assert found.gone == 1
    assert str(found) == (
        "train gained 0 images, validation 0, test 0; "
        "moved: 2 from test to train, 1 from validation to test, 1 are no longer used"
    )


def test_images_that_are_not_files_have_no_assignment() -> None:
    """Arrays cannot grow."""
    bare = Split(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int64), ("train 0",))
    assert assignment_of(Dataset(("a",), bare, bare, bare)) == {}
