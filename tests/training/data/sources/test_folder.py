"""Class directories in every layout, and with the defects of real data."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from training.data import load
from training.data.sources import folder
from training.errors import DataError
from training.recipe import DataRecipe, resolve

GEOMETRY = Geometry(height=16, width=16, channels=3)


def write_images(folder: Path, count: int, seed: int) -> None:
    """Distinct small JPEGs."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")


def test_three_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    """train, val and test keep their images; the labels are the sorted directory names."""
    for seed, (split, count) in enumerate((("train", 12), ("val", 10), ("test", 4))):
        write_images(tmp_path / split / "cat", count, seed)
        write_images(tmp_path / split / "ant", count, seed + 10)
    dataset, report = load(DataRecipe(source="folder"), GEOMETRY, tmp_path)
    assert dataset.labels == ("ant", "cat")
    assert {split: sum(counts.values()) for split, counts in report.counts.items()} == {
        "train": 24,
        "validation": 20,
        "test": 8,
    }
    assert dataset.test.names[0] == "test/ant/000.jpg"


def test_plain_class_folders_are_split_by_the_seed(tmp_path: Path) -> None:
    """Class directories are split about in proportion, by the seed alone."""
    write_images(tmp_path / "a", 300, 1)
    write_images(tmp_path / "b", 200, 2)
    recipe = DataRecipe(source="folder")
    first, report = load(recipe, GEOMETRY, tmp_path)
    again, _ = load(recipe, GEOMETRY, tmp_path)
    other, _ = load(recipe.model_copy(update={"split_seed": 1}), GEOMETRY, tmp_path)
    assert 40 < report.counts["test"]["a"] < 80
    assert 25 < report.counts["test"]["b"] < 55
    assert 20 < report.counts["validation"]["a"] < 55
    assert first.digest() == again.digest() != other.digest()


def test_added_images_move_none(tmp_path: Path) -> None:
    """Where images are added, and files renamed or copied, each image stays in its split."""
    write_images(tmp_path / "a", 250, 1)
    write_images(tmp_path / "b", 250, 2)
    recipe = DataRecipe(source="folder")
    before, _ = load(recipe, GEOMETRY, tmp_path)
    (tmp_path / "a" / "100.jpg").rename(tmp_path / "a" / "renamed.jpg")
    (tmp_path / "b" / "copy.jpg").write_bytes((tmp_path / "b" / "000.jpg").read_bytes())
    for seed, name in ((3, "a/later"), (4, "b/later"), (5, "c")):
        write_images(tmp_path / name, 100, seed)
    after, report = load(recipe, GEOMETRY, tmp_path)
    now = {digest: name for name, split in after.splits().items() for digest in split.digests}
    for name, split in before.splits().items():
        assert {now[digest] for digest in split.digests} == {name}
    assert report.removed == {"train": (), "validation": ()}


def test_splits_do_not_depend_on_the_geometry(tmp_path: Path) -> None:
    """Recipes of other image sizes read the same splits from the same directory."""
    write_images(tmp_path / "a", 120, 1)
    write_images(tmp_path / "b", 120, 2)
    recipe = DataRecipe(source="folder", min_validation_images_per_class=1)
    small, _ = load(recipe, GEOMETRY, tmp_path)
    grey, _ = load(recipe, Geometry(height=9, width=20, channels=1), tmp_path)
    assert small.test.names == grey.test.names
    assert small.validation.names == grey.validation.names


def test_too_few_images_for_a_split_are_refused_with_settings_that_work(tmp_path: Path) -> None:
    """The message names the class, both numbers, and values of the settings that give enough."""
    write_images(tmp_path / "a", 60, 1)
    write_images(tmp_path / "b", 60, 2)
    recipe = DataRecipe(source="folder")
    with pytest.raises(DataError) as caught:
        load(recipe, GEOMETRY, tmp_path)
    said = str(caught.value)
    assert "data.min_validation_images_per_class is 10: add images (there are 60, about 156 would do)" in said
    for seed in (3, 4):
        write_images(tmp_path / "more" / str(seed), 156, seed)
    assert load(recipe, GEOMETRY, tmp_path / "more")
    found = re.search(
        r"raise data.validation_fraction \(0.15\) to ([\d.]+) or set data.split_seed=(\d+)", said
    )
    assert found
    for update in ({"validation_fraction": float(found[1])}, {"split_seed": int(found[2])}):
        _, report = load(recipe.model_copy(update=update), GEOMETRY, tmp_path)
        assert min(report.counts["validation"].values()) >= 10


def test_few_images_can_be_split_with_the_seed_of_the_message(tmp_path: Path) -> None:
    """Five images of each class are enough for three splits, with a seed that the message finds."""
    for seed in range(3):
        write_images(tmp_path / f"class{seed}", 5, seed)
    recipe = DataRecipe(source="folder", min_validation_images_per_class=1)
    with pytest.raises(DataError, match=r"at least 1 of each is needed") as caught:
        load(recipe, GEOMETRY, tmp_path)
    found = re.search(r"set data.split_seed=(\d+), which gives every class enough", str(caught.value))
    assert found
    _, report = load(recipe.model_copy(update={"split_seed": int(found[1])}), GEOMETRY, tmp_path)
    assert all(count for counts in report.counts.values() for count in counts.values())


@pytest.mark.parametrize(
    ("folders", "test_names"),
    [(("train",), "train/"), (("train", "val"), "val/"), (("train", "val", "test"), "test/")],
)
def test_val_is_the_test_split_only_where_there_is_no_test(
    tmp_path: Path, folders: tuple[str, ...], test_names: str
) -> None:
    """One rule for every recipe: a proof needs images that chose nothing. Every directory is used."""
    for seed, split in enumerate(folders):
        write_images(tmp_path / split / "ant", 160, seed)
        write_images(tmp_path / split / "bee", 160, seed + 10)
    for recipe in ("transfer", "few-shot", "lenet5-folder"):
        dataset, report = load(resolve(recipe).data, GEOMETRY, tmp_path)
        assert all(name.startswith(test_names) for name in dataset.test.names)
        assert sum(sum(counts.values()) for counts in report.counts.values()) == 320 * len(folders)
        assert any("val is the test split" in note for note in report.notes()) == (len(folders) == 2)


def test_recipes_of_earlier_versions_are_still_read() -> None:
    """`val_is_test` is in their run folders and bundles."""
    assert DataRecipe.model_validate({"source": "folder", "val_is_test": False}) == DataRecipe(
        source="folder"
    )


def test_undecodable_files_are_left_out_by_name(tmp_path: Path) -> None:
    """A truncated JPEG, an empty file and a text named .png are listed; other files are counted."""
    write_images(tmp_path / "a", 100, 1)
    write_images(tmp_path / "b", 100, 2)
    whole = (tmp_path / "a" / "000.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "b" / "text.png").write_text("no picture")
    (tmp_path / "b" / "Thumbs.db").write_text("no picture either")
    recipe = DataRecipe(source="folder")
    _, report = load(recipe, GEOMETRY, tmp_path)
    assert set(report.undecodable) == {"a/cut.jpg", "a/empty.jpg", "b/text.png"}
    assert report.ignored_files == 1
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 200
    with pytest.raises(
        DataError, match=r"3 undecodable files, but data\.strict=true allows none: .*cut\.jpg"
    ):
        load(recipe.model_copy(update={"strict": True}), GEOMETRY, tmp_path)


def test_a_folder_of_another_shape_is_refused(tmp_path: Path) -> None:
    """A missing directory, a single class, and test without train: the message says what is missing."""
    with pytest.raises(DataError, match="is not a directory"):
        folder.load(GEOMETRY, tmp_path / "nowhere")
    write_images(tmp_path / "one" / "a", 3, 1)
    with pytest.raises(DataError, match="has 1 class directory, at least 2 are needed"):
        folder.load(GEOMETRY, tmp_path / "one")
    write_images(tmp_path / "halves" / "test" / "a", 3, 1)
    with pytest.raises(DataError, match="has test, but no train directory"):
        folder.load(GEOMETRY, tmp_path / "halves")


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    """A class without images is an error that names it."""
    write_images(tmp_path / "a", 30, 1)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"class directory nothing in .* has no images: add some"):
        load(DataRecipe(source="folder"), GEOMETRY, tmp_path)


def test_a_class_only_in_test_is_refused_by_name(tmp_path: Path) -> None:
    """A class that occurs only in test is an error that names class and split."""
    for seed, split in enumerate(("train", "val", "test")):
        write_images(tmp_path / split / "ant", 12, seed)
        write_images(tmp_path / split / "cat", 12, seed + 10)
    write_images(tmp_path / "test" / "zebra", 3, 30)
    with pytest.raises(
        DataError, match="the train split has 0 images of zebra, at least 1 of each is needed"
    ):
        load(DataRecipe(source="folder"), GEOMETRY, tmp_path)


def test_repeats_across_folders_leave_training(tmp_path: Path) -> None:
    """A file in train and test is removed from train, and named."""
    for seed, split in enumerate(("train", "val", "test")):
        write_images(tmp_path / split / "ant", 12, seed)
        write_images(tmp_path / split / "cat", 12, seed + 10)
    (tmp_path / "train" / "cat" / "copy.jpg").write_bytes((tmp_path / "test/cat/003.jpg").read_bytes())
    dataset, report = load(DataRecipe(source="folder"), GEOMETRY, tmp_path)
    assert report.removed["train"] == ("train/cat/copy.jpg",)
    assert "train/cat/copy.jpg" not in dataset.train.names
    assert any("train/cat/copy.jpg" in line and "removed from train" in line for line in report.warnings())


def test_unusual_images_are_used_as_the_server_would(tmp_path: Path) -> None:
    """A single pixel, 16-bit grey and CMYK decode to the geometry with the right colours."""
    for name, seed in (("a", 1), ("b", 2)):
        write_images(tmp_path / name, 100, seed)
    Image.new("RGB", (1, 1), (200, 10, 10)).save(tmp_path / "a" / "pixel.png")
    Image.fromarray(np.full((9, 9), 200 * 257, np.uint16)).save(tmp_path / "a" / "sixteen.png")
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "b" / "cmyk.jpg")
    dataset, report = load(DataRecipe(source="folder"), GEOMETRY, tmp_path)
    pixels = {
        name: image[8, 8].tolist()
        for part in dataset.splits().values()
        for name, image in zip(part.names, part.images, strict=True)
    }
    assert report.undecodable == {}
    assert pixels["a/pixel.png"] == [200, 10, 10]
    assert pixels["a/sixteen.png"] == [200, 200, 200]
    red = pixels["b/cmyk.jpg"]
    assert red[0] > 200
    assert max(red[1:]) < 60
