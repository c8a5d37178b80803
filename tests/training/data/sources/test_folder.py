"""Class directories in every layout, and with the defects of real data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from training.data import load
from training.data.sources import folder
from training.errors import DataError
from training.recipe import DataRecipe

GEOMETRY = Geometry(height=16, width=16, channels=3)


def write_images(folder: Path, count: int, seed: int) -> None:
    """Distinct small JPEGs."""
    folder.mkdir(parents=True)
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
    """Class directories are split in proportion, by the seed alone."""
    write_images(tmp_path / "a", 100, 1)
    write_images(tmp_path / "b", 80, 2)
    recipe = DataRecipe(source="folder")
    first, report = load(recipe, GEOMETRY, tmp_path)
    again, _ = load(recipe, GEOMETRY, tmp_path)
    other, _ = load(recipe.model_copy(update={"split_seed": 1}), GEOMETRY, tmp_path)
    assert report.counts["test"] == {"a": 20, "b": 16}
    assert first.digest() == again.digest() != other.digest()


@pytest.mark.parametrize(
    ("folders", "test_names"),
    [(("train",), "train/"), (("train", "val"), "val/"), (("train", "val", "test"), "test/")],
)
def test_val_is_the_test_split_only_where_there_is_no_test(
    tmp_path: Path, folders: tuple[str, ...], test_names: str
) -> None:
    """data.val_is_test works with every layout, and uses every directory."""
    for seed, split in enumerate(folders):
        write_images(tmp_path / split / "ant", 80, seed)
        write_images(tmp_path / split / "bee", 80, seed + 10)
    dataset, report = load(DataRecipe(source="folder", val_is_test=True), GEOMETRY, tmp_path)
    assert all(name.startswith(test_names) for name in dataset.test.names)
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 160 * len(folders)


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
    with pytest.raises(DataError, match="has 1 class directories, at least 2 are needed"):
        folder.load(GEOMETRY, tmp_path / "one")
    write_images(tmp_path / "halves" / "test" / "a", 3, 1)
    with pytest.raises(DataError, match="has test, but no train directory"):
        folder.load(GEOMETRY, tmp_path / "halves")


def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    """A class without images is an error that names it."""
    write_images(tmp_path / "a", 30, 1)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing"):
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
