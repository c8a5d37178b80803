"""Images of one patient stay in one split."""

import numpy as np
import pytest

from training.data.groups import choose_groups, find_groups
from training.data.splits import SourceData, Split, make_splits
from training.errors import DataError, RecipeError


def test_the_group_is_found_in_the_name() -> None:
    """The first capturing group, else the whole match, else the name itself."""
    names = ["a/person12_virus_3.jpeg", "b/person12_bacteria_1.jpeg", "c/other.jpeg"]
    assert find_groups(names, r"person(\d+)_") == ["12", "12", "c/other.jpeg"]
    assert find_groups(names, r"person\d+") == ["person12", "person12", "c/other.jpeg"]


def test_a_wrong_pattern_is_refused() -> None:
    """An invalid regular expression, or one that matches nothing, is an error."""
    with pytest.raises(RecipeError, match="is not a valid regular expression"):
        find_groups(["a"], "(")
    with pytest.raises(DataError, match=r"matches none of 2 names, such as 'a\.png'"):
        find_groups(["a.png", "b.png"], "person")


def test_groups_are_chosen_whole_and_in_proportion() -> None:
    """About a fifth of each class, and every group on one side."""
    random = np.random.default_rng(0)
    patients = random.integers(0, 150, 1000)
    labels = (patients % 3 == 0).astype(np.int64)
    chosen = choose_groups(labels, [str(patient) for patient in patients], 0.2, random)
    rest = np.setdiff1d(np.arange(1000), chosen)
    assert not set(patients[chosen]) & set(patients[rest])
    for label in (0, 1):
        assert 0.17 < (labels[chosen] == label).sum() / (labels == label).sum() < 0.23


def test_divide_keeps_groups_together_in_all_three_splits() -> None:
    """No patient is in two splits, and the splits depend on the seed alone."""
    random = np.random.default_rng(0)
    patients = random.integers(0, 120, 800)
    names = tuple(f"person{patient}_{number}.png" for number, patient in enumerate(patients))
    images = np.zeros((800, 2, 2, 1), np.uint8)
    everything = SourceData(("a", "b"), Split(images, patients % 2, names))

    def divided(seed: int) -> list[set[str]]:
        dataset = make_splits(
            everything, test_fraction=0.2, validation_fraction=0.2, seed=seed, group_pattern=r"person\d+"
        )
        return [{name.split("_")[0] for name in part.names} for part in dataset.splits().values()]

    train, validation, test = divided(0)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert divided(0) == [train, validation, test] != divided(1)
