"""CIFAR-10 in its published layouts, whole, damaged and malicious."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Geometry
from training.data import load
from training.data.sources import cifar10
from training.errors import DataError
from training.recipe import DataRecipe

OBJECTS = Geometry(height=32, width=32, channels=3)
RECIPE = DataRecipe(source="cifar10")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def batch(seed: int) -> tuple[np.ndarray, list[int]]:
    """Twenty random images as planes, two of each class."""
    rows = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
    return rows, [number % 10 for number in range(20)]


def write(root: Path, layout: str) -> None:
    """Tiny batches in one of the published layouts."""
    if layout == "npz":
        train = [batch(seed) for seed in range(5)]
        planes = np.concatenate([rows for rows, _ in train]).reshape(-1, 3, 32, 32)
        test, test_labels = batch(5)
        np.savez(
            root / "cifar10.npz",
            train_images=planes.transpose(0, 2, 3, 1),
            train_labels=np.concatenate([labels for _, labels in train])[:, None],
            test_images=test.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
            test_labels=np.array(test_labels)[:, None],
        )
        return
    folder = root / f"cifar-10-batches-{layout}"
    folder.mkdir()
    for seed, name in enumerate(BATCHES):
        rows, labels = batch(seed)
        if layout == "bin":
            column = np.array(labels, np.uint8)[:, None]
            (folder / f"{name}.bin").write_bytes(np.hstack([column, rows]).tobytes())
        else:
            content = {b"batch_label": b"x", b"labels": labels, b"data": rows, b"filenames": [b"a.png"] * 20}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("layout", ["bin", "py", "npz"])
def test_every_layout_gives_the_same_images(tmp_path: Path, layout: str) -> None:
    """100 training and 20 test images, red plane first, labels by name."""
    write(tmp_path, layout)
    source = cifar10.load(OBJECTS, tmp_path, RECIPE)
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (100, 20)
    rows, _ = batch(0)
    assert np.array_equal(source.train.images[0][0, 0], rows[0][[0, 1024, 2048]])
    assert source.labels[source.train.labels[3]] == "cat"


def test_a_pickle_that_runs_code_is_rejected(tmp_path: Path) -> None:
    """A pickle that would write a file is rejected, and no file is written."""
    write(tmp_path, "py")

    class Malicious:
        """Runs a command when unpickled."""

        def __reduce__(self) -> tuple[object, ...]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({b"data": Malicious()}))
    with pytest.raises(DataError, match=r"loads builtins\.exec"):
        cifar10.load(OBJECTS, tmp_path, RECIPE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("layout", "name", "content", "said"),
    [
        ("bin", "data_batch_2.bin", bytes(3074), "has 3074 bytes, not a multiple of 3073"),
        ("bin", "test_batch.bin", bytes([11]) + bytes(3072), "has label 11, the highest valid label is 9"),
        ("py", "data_batch_3", b"no pickle", "is not a CIFAR-10 batch"),
        (
            "py",
            "data_batch_3",
            pickle.dumps({b"data": [[1]], b"labels": [1]}),
            "1 labels need data of shape (1, 3072), got (1, 1)",
        ),
    ],
)
def test_damaged_batches_are_named(tmp_path: Path, layout: str, name: str, content: bytes, said: str) -> None:
    """The message names the file and its defect."""
    write(tmp_path, layout)
    (tmp_path / f"cifar-10-batches-{layout}" / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        cifar10.load(OBJECTS, tmp_path, RECIPE)
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_missing_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    """The message names all three layouts, and the download option."""
    with pytest.raises(DataError, match=r"no cifar10\.npz, cifar-10-batches-bin.*data\.download=true"):
        cifar10.load(OBJECTS, tmp_path, RECIPE)


def test_cifar10_loads_through_the_checks(tmp_path: Path) -> None:
    """Loading through `load`, as a recipe does."""
    write(tmp_path, "bin")
    recipe = DataRecipe(source="cifar10", min_validation_images_per_class=1)
    dataset, report = load(recipe, OBJECTS, tmp_path)
    assert sum(report.counts["train"].values()) + len(dataset.validation) == 100
