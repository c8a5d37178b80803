"""Checks of the data before training."""

from dataclasses import replace

import numpy as np
import pytest

from training.data.checks import check
from training.data.splits import Dataset, SourceData, Split
from training.errors import DataError
from training.recipe import DataRecipe

RECIPE = DataRecipe(source="fake", min_validation_images_per_class=2)
LABELS = ("cat", "dog")


def split(name: str, *shades_and_labels: tuple[int, int]) -> Split:
    """Uniform images, each of one grey level."""
    shades = np.array([shade for shade, _ in shades_and_labels], dtype=np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (len(shades), 4, 4, 1)).copy()
    labels = np.array([label for _, label in shades_and_labels], dtype=np.int64)
    return Split(images, labels, tuple(f"{name}/{number}" for number in range(len(labels))))


def dataset(train: Split, validation: Split, test: Split) -> tuple[Dataset, SourceData]:
    """A data set, and the source it was made from."""
    return Dataset(LABELS, train, validation, test), SourceData(LABELS, train, validation, test)


VALIDATION = split("validation", (10, 0), (11, 1), (12, 0), (13, 1))
TEST = split("test", (20, 0), (21, 1))


def test_clean_data_pass_untouched() -> None:
    """No image is removed and there are no warnings."""
    data, source = dataset(split("train", (1, 0), (2, 1)), VALIDATION, TEST)
    kept, report = check(data, source, RECIPE)
    assert kept.digest() == data.digest()
    assert report.warnings() == []


def test_leaks_leave_the_earlier_split() -> None:
    """Images of test leave train and validation, images of validation leave train; test stays complete."""
    train = split("train", (1, 0), (2, 1), (20, 0), (11, 1))
    validation = split("validation", (10, 0), (11, 1), (12, 0), (13, 1), (21, 1))
    data, source = dataset(train, validation, TEST)
    kept, report = check(data, source, RECIPE)
    assert report.removed == {"train": ("train/2", "train/3"), "validation": ("validation/4",)}
    assert [len(part) for part in kept.splits().values()] == [2, 4, 2]
    assert any("2 images removed from train" in line for line in report.warnings())


def test_repeats_within_a_split_are_counted_and_kept() -> None:
    """A duplicate within the training split is reported and kept."""
    data, source = dataset(split("train", (1, 0), (1, 0), (2, 1)), VALIDATION, TEST)
    kept, report = check(data, source, RECIPE)
    assert report.repeated["train"] == 1
    assert len(kept.train) == 3


def test_equal_images_with_different_labels_are_named() -> None:
    """Pairs with contradicting labels are listed for a person to check."""
    data, source = dataset(split("train", (1, 0), (1, 1), (2, 1)), VALIDATION, TEST)
    _, report = check(data, source, RECIPE)
    assert report.conflicts == ("train/0 is cat, train/1 is dog",)


@pytest.mark.parametrize(
    ("train", "validation", "test", "said"),
    [
        (
            split("train", (1, 0)),
            VALIDATION,
            TEST,
            "the train split has 0 images of dog, at least 1 of each is needed",
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
            "the validation split has 1 image of dog, data.min_validation_images_per_class is 2",
        ),
    ],
)
def test_gaps_are_refused_with_both_numbers(train: Split, validation: Split, test: Split, said: str) -> None:
    """A missing class, or too small a validation split, is an error."""
    data, source = dataset(train, validation, test)
    with pytest.raises(DataError) as caught:
        check(data, source, RECIPE)
    assert said in str(caught.value)


def drawn(name: str, *seeds: int, dark: int = 0) -> Split:
    """Smooth random images, slightly darkened, with alternating labels."""
    coarse = [np.random.default_rng(seed).integers(40, 256, (4, 4), dtype=np.uint8) for seed in seeds]
    images = np.stack([np.kron(c, np.ones((8, 8), np.uint8)) - np.uint8(dark) for c in coarse])[..., None]
    labels = np.arange(len(seeds)) % 2
    return Split(images, labels.astype(np.int64), tuple(f"{name}/{number}" for number in range(len(seeds))))


@pytest.mark.parametrize("removes", [False, True])
def test_near_duplicates_across_splits_are_said_and_taken_out_where_asked(*, removes: bool) -> None:
    """A darker copy of a test image leaves training only with data.near_duplicates=remove."""
    train = drawn("train", 1, 2, 3, 4, 100, 101)
    test = drawn("test", 100, 102, dark=20)
    data, source = dataset(train, drawn("validation", 10, 11, 12, 13), test)
    recipe = RECIPE.model_copy(update={"near_duplicates": "remove" if removes else "report"})
    kept, report = check(data, source, recipe)
    assert report.near_duplicates == ("train/4 and test/0",)
    assert report.near_leaks["train"] == ("train/4",)
    assert ("train/4" in kept.train.names) is not removes
    assert len(kept.test) == 2
    said = next(line for line in report.warnings() if "like one of a later split" in line)
    assert (", removed" if removes else "kept") in said
    assert ("train/4" in said, report.near_leaks_removed) == (True, removes)


def test_test_images_like_kept_training_images_are_counted() -> None:
    """Each once, however many copies of it there are; not those that resemble each other alone."""
    test = drawn("test", 100, 101, 1, 1, dark=20)
    test = replace(test, images=np.concatenate([test.images[:3], test.images[3:] - np.uint8(10)]))
    train, validation = (
        drawn("train", 2, 3, 100, 5, 100, dark=10),
        drawn("validation", 10, 101, 12, 13, 14, 15),
    )
    for choice, counted in (("report", 2), ("remove", 0), ("ignore", 0)):
        recipe = RECIPE.model_copy(update={"near_duplicates": choice})
        assert check(*dataset(train, validation, test), recipe)[1].test_near_leaks == counted


def test_near_duplicates_can_be_ignored() -> None:
    """With data.near_duplicates=ignore they are not searched for."""
    data, source = dataset(
        drawn("train", 1, 100), drawn("validation", 10, 11, 12, 13), drawn("test", 100, 2, dark=20)
    )
    _, report = check(data, source, RECIPE.model_copy(update={"near_duplicates": "ignore"}))
    assert report.near_duplicates == ()


def test_a_class_that_lost_its_images_says_to_what() -> None:
    """To a later split, or to damage: `0 images` alone would be a riddle."""
    data, source = dataset(split("train", (20, 0), (21, 1)), VALIDATION, TEST)
    with pytest.raises(DataError, match=r"0 images of cat, dog.*: a later split has 2 images of train too"):
        check(data, source, RECIPE)
    damaged = replace(source, undecodable={"train/dog/a.png": "it is empty"})
    data, _ = dataset(split("train", (1, 0)), VALIDATION, TEST)
    with pytest.raises(
        DataError, match=r"1 file cannot be decoded, such as train/dog/a\.png \(it is empty\)"
    ):
        check(data, damaged, RECIPE)


def test_one_class_is_refused() -> None:
    """Whatever the source: it would be published with an accuracy of 100 %."""
    only = split("train", (1, 0), (2, 0))
    data = Dataset(("cat",), only, split("validation", (3, 0), (4, 0)), split("test", (5, 0)))
    source = SourceData(("cat",), only)
    with pytest.raises(DataError, match=r"have 1 class \(cat\), at least 2 are needed"):
        check(data, source, RECIPE)
