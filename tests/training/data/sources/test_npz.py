"""Arrays in MedMNIST's layout, valid and invalid."""

from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Geometry
from training.data import load
from training.data.sources import npz
from training.errors import DataError, RecipeError
from training.recipe import DataRecipe

GREY = Geometry(height=28, width=28, channels=1)
RECIPE = DataRecipe(source="npz")


def arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Three splits of random grey images of two classes."""
    random = np.random.default_rng(0)
    made = {}
    for key, count in (("train", 40), ("val", 24), ("test", 10)):
        made[f"{key}_images"] = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        made[f"{key}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    return {**made, **changed}


def write(file: Path, content: dict[str, np.ndarray]) -> None:
    """Write arrays by their names."""
    np.savez(file, **content)  # type: ignore[arg-type] # of its option allow_pickle


def test_three_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    """The only .npz of the directory is found; classes are named by the recipe or by number."""
    write(tmp_path / "some.npz", arrays())
    dataset, _ = load(RECIPE, GREY, tmp_path)
    assert [len(part) for part in dataset.splits().values()] == [40, 24, 10]
    assert dataset.labels == ("0", "1")
    named, _ = load(RECIPE.model_copy(update={"labels": ("normal", "ill")}), GREY, tmp_path)
    assert named.labels == ("normal", "ill")
    assert np.array_equal(named.test.images[:][..., 0], arrays()["test_images"])


def test_images_of_another_size_are_brought_into_geometry(tmp_path: Path) -> None:
    """Colour images of 8x8 become grey ones of 28x28."""
    shape = {"val": 24, "test": 10, "train": 40}
    colour = {f"{key}_images": np.full((count, 8, 8, 3), 100, np.uint8) for key, count in shape.items()}
    write(tmp_path / "some.npz", arrays(**colour))
    source = npz.load(GREY, tmp_path / "some.npz", RECIPE)
    assert source.train.images.shape == (40, 28, 28, 1)
    assert int(source.train.images[0][5, 5, 0]) == 100


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"train_images": np.zeros((40, 28, 28), np.float32)},
            "train_images is float32 (40, 28, 28, 1), expected uint8",
        ),
        ({"test_images": np.zeros((10, 28, 28, 4), np.uint8)}, "(10, 28, 28, 4), expected uint8 (N, H, W)"),
        ({"val_labels": np.zeros((24, 3), np.uint8)}, "val_labels is uint8 (24, 3), expected one integer"),
        ({"val_labels": np.zeros((23, 1), np.uint8)}, "has 24 val_images, but 23 val_labels"),
        ({"test_labels": np.full((10, 1), -1)}, "test_labels has -1, the lowest valid label is 0"),
        ({"test_labels": np.array([[None]] * 10)}, "cannot be read"),
        ({"test_labels": np.array(3)}, "test_labels is int64 (), expected one integer per image"),
        (
            {"test_images": np.zeros((0, 28, 28), np.uint8), "test_labels": np.zeros(0, np.uint8)},
            "test_images is empty, (0, 28, 28, 1)",
        ),
        ({"train_images": np.zeros((40, 0, 28), np.uint8)}, "train_images is empty, (40, 0, 28, 1)"),
        ({"test_labels": np.full(10, 2**40)}, "has label 1099511627776, but only 74 images"),
        ({"valid_images": np.zeros((4, 28, 28), np.uint8)}, "has valid_images, which is not a split"),
    ],
)
def test_wrong_arrays_are_refused_with_both_numbers(
    tmp_path: Path, changed: dict[str, np.ndarray], said: str
) -> None:
    """The message names shape and type; pickled objects are never loaded."""
    write(tmp_path / "some.npz", arrays(**changed))
    with pytest.raises(DataError) as caught:
        npz.load(GREY, tmp_path, RECIPE)
    assert said in str(caught.value)


@pytest.mark.parametrize("labels", [("a", "a"), ("caf\u00e9", "cafe\u0301"), ("", "b"), ("a", "b\u200b")])
def test_names_of_classes_must_differ_to_the_eye(tmp_path: Path, labels: tuple[str, str]) -> None:
    """Two classes of one name would be counted as one."""
    write(tmp_path / "some.npz", arrays())
    with pytest.raises(RecipeError, match=r"data\.labels must be different, visible names"):
        npz.load(GREY, tmp_path, RECIPE.model_copy(update={"labels": labels}))


def test_which_file_is_meant_must_be_clear(tmp_path: Path) -> None:
    """No file, two files, or a missing one: the message says what to do."""
    with pytest.raises(DataError, match=r"has 0 \.npz files \(none\): choose one with --set data\.file=NAME"):
        npz.load(GREY, tmp_path, RECIPE)
    write(tmp_path / "a.npz", arrays())
    np.savez(tmp_path / "b.npz", train_labels=np.zeros(3))
    with pytest.raises(DataError, match=r"has 2 \.npz files \(a\.npz, b\.npz\)"):
        npz.load(GREY, tmp_path, RECIPE)
    assert npz.load(GREY, tmp_path, RECIPE.model_copy(update={"file": "a.npz"})).labels == ("0", "1")
    with pytest.raises(DataError, match=r"the data file .* is missing"):
        npz.load(GREY, tmp_path, RECIPE.model_copy(update={"file": "c.npz"}))
    with pytest.raises(DataError, match="has no train_images, only train_labels"):
        npz.load(GREY, tmp_path, RECIPE.model_copy(update={"file": "b.npz"}))
    (tmp_path / "c.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"c\.npz cannot be read"):
        npz.load(GREY, tmp_path, RECIPE.model_copy(update={"file": "c.npz"}))


def test_too_few_names_are_refused(tmp_path: Path) -> None:
    """The message names both numbers."""
    write(tmp_path / "a.npz", arrays())
    with pytest.raises(DataError, match=r"has label 1, but data\.labels names only 1 class"):
        npz.load(GREY, tmp_path, RECIPE.model_copy(update={"labels": ("normal",)}))
