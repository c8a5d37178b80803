"""ImageNet images: labelled by the synset in file or directory names, for evaluation only."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from training.data import load
from training.data.sources import imagenet
from training.data.sources.imagenet import categories, synsets
from training.errors import DataError
from training.recipe import DataRecipe

GEOMETRY = Geometry(height=8, width=8, channels=3)


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9, 3), colour, np.uint8)).save(path)


def test_synsets_and_categories_are_in_the_same_order() -> None:
    """1,000 distinct names each, synsets sorted; spot checks of well-known classes."""
    assert list(synsets()) == sorted(set(synsets()))
    assert len(set(categories())) == len(categories()) == len(synsets()) == 1000
    known = dict(zip(synsets(), categories(), strict=True))
    assert (known["n01440764"], known["n01443537"], known["n15075141"]) == (
        "tench",
        "goldfish",
        "toilet tissue",
    )


def test_pictures_are_known_by_file_or_folder(tmp_path: Path) -> None:
    """Both layouts form the test split; files without a synset are counted and ignored."""
    picture(tmp_path / "n01443537_goldfish.PNG", (255, 0, 0))
    picture(tmp_path / "val" / "n01440764" / "one.png", (0, 255, 0))
    picture(tmp_path / "n99999999_unknown.png", (0, 0, 255))
    (tmp_path / "food.json").write_text("{}")
    source = imagenet.load(GEOMETRY, tmp_path)
    assert source.test is not None
    assert source.test.labels.tolist() == [1, 0]
    assert source.ignored == ("food.json", "n99999999_unknown.png")
    dataset, report = load(DataRecipe(source="imagenet"), GEOMETRY, tmp_path)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (0, 0, 2)
    assert report.counts == {"test": {"tench": 1, "goldfish": 1}}


def test_a_folder_without_synsets_is_refused(tmp_path: Path) -> None:
    """The message gives an example of a name."""
    picture(tmp_path / "goldfish.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"such as n01443537_goldfish\.JPEG"):
        imagenet.load(GEOMETRY, tmp_path)
