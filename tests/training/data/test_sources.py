"""The sources without files, and their splits."""

from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Geometry
from serving.errors import UsageError
from training.data import load, load_unchecked
from training.errors import DataError
from training.recipe import DataRecipe, resolve

DIGITS = Geometry(height=28, width=28, channels=1, background=0)


def test_digits_are_real_scans_in_model_geometry() -> None:
    """1,797 digits, each in exactly one split, with full contrast, ten classes in each split."""
    recipe = resolve("lenet5-digits")
    dataset, report = load(recipe.data, recipe.geometry, None)
    splits = dataset.splits().values()
    assert sum(len(split) for split in splits) == 1_797
    assert len({name for split in splits for name in split.names}) == 1_797
    assert dataset.test.images.shape[1:] == (28, 28, 1)
    pixels = dataset.train.images[:]
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert all(count > 0 for counts in report.counts.values() for count in counts.values())


def test_the_test_split_does_not_depend_on_the_checks() -> None:
    """`load_unchecked` gives the test split that training held out."""
    recipe = resolve("lenet5-digits")
    checked, _ = load(recipe.data, recipe.geometry, None)
    unchecked = load_unchecked(recipe.data, recipe.geometry, None)
    assert np.array_equal(checked.test.images[:], unchecked.test.images[:])


def test_fake_data_are_the_same_every_time() -> None:
    """Fake data depend on the recipe alone."""
    recipe = DataRecipe(source="fake", fake_classes=3, fake_images_per_class=80)
    first, _ = load(recipe, DIGITS, None)
    again, _ = load(recipe, DIGITS, None)
    assert first.digest() == again.digest()
    assert first.labels == ("pattern-0", "pattern-1", "pattern-2")


@pytest.mark.parametrize("source", ["mnist", "folder"])
def test_sources_of_files_need_a_data_root(source: str) -> None:
    """Without --data-root the message names the option."""
    with pytest.raises(UsageError, match=f"data source {source} needs --data-root"):
        load(DataRecipe.model_validate({"source": source}), DIGITS, None)
    with pytest.raises(UsageError, match="--data-root nowhere is missing: name the directory"):
        load(DataRecipe.model_validate({"source": source}), DIGITS, Path("nowhere"))


def test_too_few_images_to_divide_are_refused() -> None:
    """A class that cannot be in every split is named with its count."""
    recipe = DataRecipe(source="fake", fake_images_per_class=10, test_fraction=0.04)
    with pytest.raises(
        DataError, match=r"class pattern-0 has 10 images: taking 4% of them \(data.test_fraction\)"
    ):
        load(recipe, DIGITS, None)
