"""Flaws in the data are found before the first step."""

import numpy as np
import pytest

from training.data.checks import check
from training.data.splits import Collected, Dataset, Split
from training.errors import DataError
from training.recipe import DataRecipe

RECIPE = DataRecipe(source="fake", min_validation_images_per_class=2)
LABELS = ("cat", "dog")


def split(name: str, *shades_and_labels: tuple[int, int]) -> Split:
    """Plain images, each of one grey."""
    shades = np.array([shade for shade, _ in shades_and_labels], dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (len(shades), 4, 4, 1)).copy()
    labels = np.array([label for _, label in shades_and_labels], dtype=np.int64)
    return Split(images, labels, tuple(f"{name}/{number}" for number in range(len(labels))))


def dataset(train: Split, validation: Split, test: Split) -> tuple[Dataset, Collected]:
    """As a source and `divide` would give it."""
    return Dataset(LABELS, train, validation, test), Collected(LABELS, train, validation, test)


VALIDATION = split("validation", (10, 0), (11, 1), (12, 0), (13, 1))
TEST = split("test", (20, 0), (21, 1))


def test_clean_data_pass_untouched() -> None:
    """Nothing is removed and nothing is said."""
    data, collected = dataset(split("train", (1, 0), (2, 1)), VALIDATION, TEST)
    kept, report = check(data, collected, RECIPE)
    assert kept.digest() == data.digest()
    assert report.warnings() == []


def test_leaks_leave_the_earlier_split() -> None:
    """What test holds leaves train and validation, what validation holds leaves train; test stays whole."""
    train = split("train", (1, 0), (2, 1), (20, 0), (11, 1))
    validation = split("validation", (10, 0), (11, 1), (12, 0), (13, 1), (21, 1))
    data, collected = dataset(train, validation, TEST)
    kept, report = check(data, collected, RECIPE)
    assert report.removed == {"train": ("train/2", "train/3"), "validation": ("validation/4",)}
    assert [len(part) for part in kept.parts().values()] == [2, 4, 2]
    assert any("2 images taken out of train" in line for line in report.warnings())


def test_repeats_within_a_split_are_counted_and_kept() -> None:
    """A repeated training image is no leak: it is said, and stays."""
    data, collected = dataset(split("train", (1, 0), (1, 0), (2, 1)), VALIDATION, TEST)
    kept, report = check(data, collected, RECIPE)
    assert report.repeated["train"] == 1
    assert len(kept.train) == 3


def test_equal_images_with_different_labels_are_named() -> None:
    """One of two contradicting labels is wrong; a person must look."""
    data, collected = dataset(split("train", (1, 0), (1, 1), (2, 1)), VALIDATION, TEST)
    _, report = check(data, collected, RECIPE)
    assert report.conflicts == ("train/0 is cat, train/1 is dog",)


@pytest.mark.parametrize(
    ("train", "validation", "test", "said"),
    [
        (
            split("train", (1, 0)),
            VALIDATION,
            TEST,
            "the train split has 0 images of dog, at least 1 is needed",
        ),
        (
            split("train", (1, 0), (2, 1)),
            VALIDATION,
            split("test", (20, 0)),
            "the test split has 0 images of dog",
        ),
        (
            split("train", (1, 0), (2, 1)),
            split("validation", (10, 0), (11, 1), (12, 0)),
            TEST,
            "the validation split has 1 images of dog, data.min_validation_images_per_class is 2",
        ),
    ],
)
def test_gaps_are_refused_with_both_numbers(train: Split, validation: Split, test: Split, said: str) -> None:
    """A class that a split lacks, or a validation split too small to choose with, ends the run."""
    data, collected = dataset(train, validation, test)
    with pytest.raises(DataError) as caught:
        check(data, collected, RECIPE)
    assert said in str(caught.value)
