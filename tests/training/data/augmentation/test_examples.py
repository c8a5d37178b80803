"""The report's augmented examples match what training sees."""

import numpy as np

from training.data import load
from training.data.augmentation.examples import augmented_examples
from training.recipe import resolve


def test_each_row_is_an_image_and_draws_of_it() -> None:
    """Four classes, eight columns: the original and seven different draws; deterministic."""
    recipe = resolve(
        "lenet5-fake", ["augmentation.max_shift_px=3", "augmentation.erasing=0.5", "augmentation.mixup=0.4"]
    )
    dataset, _ = load(recipe.data, recipe.geometry, None)
    examples = augmented_examples(recipe, dataset.train)
    assert examples is not None
    assert examples.shape == (4, 8, 28, 28, 1)
    for label, row in enumerate(examples):
        first = dataset.train.images[np.flatnonzero(dataset.train.labels == label)[0]]
        assert np.array_equal(row[0], first)
        assert not any(np.array_equal(row[0], seen) for seen in row[1:])
    again = augmented_examples(recipe, dataset.train)
    assert again is not None
    assert np.array_equal(examples, again)


def test_without_augmentation_there_is_no_picture() -> None:
    """A recipe without augmentation gives no examples."""
    recipe = resolve("lenet5-fake")
    dataset, _ = load(recipe.data, recipe.geometry, None)
    assert augmented_examples(recipe, dataset.train) is None
