"""Images of one patient stay in one split."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from training.data import load
from training.data.checks import check
from training.data.groups import choose_groups, find_groups, groups_across
from training.data.splits import SourceData, Split, SplitOptions, make_splits
from training.errors import DataError, RecipeError
from training.recipe import DataRecipe, resolve


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


@pytest.mark.parametrize("pattern", ["", "x*", "()person"])
def test_a_pattern_that_matches_nothing_of_a_name_matches_none(pattern: str) -> None:
    """It would put every image into one group without a name."""
    with pytest.raises(DataError, match="matches none of 2 names"):
        find_groups(["person1.png", "person2.png"], pattern)


def test_a_pattern_that_takes_for_ever_is_refused() -> None:
    """Nested repetition needs time exponential in a name's length."""
    with pytest.raises(RecipeError, match=r"takes more than 0\.05 s: avoid nested repetition"):
        find_groups(["a" * 40 + "!"], "(a+)+$", most_seconds=0.05)


def test_a_pattern_with_too_few_groups_for_the_splits_is_refused(tmp_path: Path) -> None:
    """No fraction and no seed would help, so none is advised."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"person{number}.png")
    recipe = DataRecipe(source="folder", group_pattern="person")
    with pytest.raises(DataError, match=r"puts 40 images into 1 group \(person\), at least 3 are needed"):
        load(recipe, Geometry(height=8, width=8, channels=1), tmp_path)


def test_the_directory_of_a_split_is_no_part_of_a_group(tmp_path: Path) -> None:
    """A pattern that takes all before the number finds a patient in two splits."""
    random = np.random.default_rng(0)
    for split, patients in (("train", (1, 2)), ("val", (3, 4)), ("test", (2, 5))):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for patient in patients:
                for number in range(2):
                    pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
                    Image.fromarray(pixels).save(tmp_path / split / label / f"p{patient}_{number}.png")
            Image.fromarray(pixels + 1).save(tmp_path / split / label / "other.png")
    recipe = DataRecipe(source="folder", group_pattern=r"^(.+)_\d", min_validation_images_per_class=1)
    geometry = Geometry(height=8, width=8, channels=1)
    with pytest.raises(DataError, match=r"2 groups .* a/p2 \(train, test\), b/p2 \(train, test\)\. Move"):
        load(recipe, geometry, tmp_path)
    allowed = recipe.model_copy(update={"allow_groups_across_splits": True})
    _, report = load(allowed, geometry, tmp_path)
    assert report.notes() == ["data.group_pattern does not match 6 of 30 names: these images are independent"]


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


@pytest.mark.parametrize("from_files", [False, True])
def test_divide_keeps_groups_together_in_all_three_splits(*, from_files: bool) -> None:
    """No patient is in two splits, and the splits depend on the seed alone; from files and from arrays."""
    random = np.random.default_rng(0)
    patients = random.integers(0, 120, 800)
    names = tuple(f"person{patient}_{number}.png" for number, patient in enumerate(patients))
    images = np.zeros((800, 2, 2, 1), np.uint8)
    digests = tuple(bytes([n % 256, n // 256]) for n in range(800)) if from_files else ()
    everything = SourceData(("a", "b"), Split(images, patients % 2, names, digests))

    def divided(seed: int) -> list[set[str]]:
        options = SplitOptions(0.2, 0.2, seed, group_pattern=r"person\d+")
        return [
            {name.split("_")[0] for name in part.names}
            for part in make_splits(everything, options).splits().values()
        ]

    train, validation, test = divided(0)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert divided(0) == [train, validation, test] != divided(1)


def published(train: tuple[str, ...], validation: tuple[str, ...], test: tuple[str, ...]) -> SourceData:
    """Given splits with these names, and two classes in each."""
    random = np.random.default_rng(0)

    def split(*some: str) -> Split:
        pixels = random.integers(0, 256, (len(some), 8, 8, 1), dtype=np.uint8)
        return Split(pixels, np.arange(len(some)) % 2, some)

    return SourceData(("a", "b"), split(*train), split(*validation), split(*test))


SHARED = {
    "train": ("train/p1_1.png", "train/p2_1.png", "train/p7.png"),
    "validation": ("val/p3_1.png", "val/p4_1.png"),
    "test": ("test/p2_2.png", "test/p5_1.png", "test/p7_3.png"),
}
OPTIONS = SplitOptions(0.2, 0.2, 0)


def test_a_group_across_given_splits_is_named_and_refused() -> None:
    """Splits that were published are held to the pattern too."""
    source = published(**SHARED)
    recipe = DataRecipe(source="folder", group_pattern=r"p\d+", min_validation_images_per_class=1)
    with pytest.raises(DataError) as caught:
        check(make_splits(source, OPTIONS), source, recipe)
    assert "data.group_pattern puts 2 groups into several splits: p2 (train, test), p7 (train, test)" in str(
        caught.value
    )
    assert "data.allow_groups_across_splits=true" in str(caught.value)


def test_a_group_across_given_splits_can_be_allowed() -> None:
    """With the setting the run goes on, and warns."""
    source = published(**SHARED)
    recipe = DataRecipe(
        source="folder",
        group_pattern=r"p\d+",
        min_validation_images_per_class=1,
        allow_groups_across_splits=True,
    )
    _, report = check(make_splits(source, OPTIONS), source, recipe)
    assert report.groups_across == ("p2 (train, test)", "p7 (train, test)")
    assert any("images of 2 groups are in several splits" in line for line in report.warnings())


def test_names_without_a_group_are_no_groups_across_splits() -> None:
    """Images that do not match stand alone."""
    assert groups_across({"train": ("a.png", "p1.png"), "test": ("a.jpg", "p2.png")}, r"p\d") == {}


def test_a_pattern_is_refused_before_any_image_is_read() -> None:
    """A pattern that is not a regular expression is an error of the recipe, whatever the splits."""
    with pytest.raises(RecipeError, match=r"data\.group_pattern.*'\(' is not a valid regular expression"):
        resolve("transfer", ["data.group_pattern=("])


def test_the_setting_changes_no_digest() -> None:
    """Recipes that were measured before it existed keep their digest."""
    assert "data.allow_groups_across_splits" in resolve("lenet5-digits").settings()
    assert resolve("lenet5-digits").digest().startswith("59211c2c50707d7d")


@pytest.mark.parametrize("name", ["pneumonia-cnn", "pneumonia-transfer"])
def test_real_splits_by_patient_pass(name: str, data_root: Path) -> None:
    """The chest X-rays as published: patients are numbered apart by cause, and each is in one split."""
    pattern = resolve(name).data.group_pattern
    assert pattern is not None
    root = data_root / "chest_xray"
    names = {
        split: [path.relative_to(root).as_posix() for path in sorted((root / split).rglob("*.jpeg"))]
        for split in ("train", "val", "test")
    }
    assert sum(map(len, names.values())) == 5503
    assert groups_across(names, pattern) == {}
    assert len(groups_across(names, r"person\d+")) > 100
