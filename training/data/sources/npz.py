"""A .npz file with MedMNIST's keys, {train,val,test}_{images,labels}. Nothing is unpickled."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry
from serving.counted import counted
from training.data.labels import is_label, label_named
from training.data.splits import SourceData, Split
from training.data.storage.arrays import apply_geometry_to_all
from training.errors import DataError, RecipeError
from training.recipe import DataRecipe

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_GREY_AXES, _COLOUR_AXES = 3, 4
_CHANNELS = (1, 3)


def load(geometry: Geometry, data_root: Path, recipe: DataRecipe) -> SourceData:
    """Find the .npz file and load the splits that it holds.

    Args:
        geometry: the size and channels of the loaded images.
        data_root: the file, or the directory of the file.
        recipe: for data.file, which is needed if the directory has several .npz files, and data.labels.

    Raises:
        DataError: the file is missing or ambiguous, or its arrays have the wrong type or shape.
    """
    return read(_find(data_root, recipe.file), geometry, recipe.labels)


def read(path: Path, geometry: Geometry, labels: tuple[str, ...]) -> SourceData:
    """Load the splits of a .npz file.

    Args:
        path: the file.
        geometry: the size and channels of the loaded images.
        labels: names of the classes; empty: their numbers.

    Raises:
        DataError: the file cannot be read, or its arrays have the wrong type or shape.
        RecipeError: two classes have the same name, or a name cannot be seen.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    _require_known_splits(arrays, path)
    splits = {
        name: _split(arrays, key, geometry, path)
        for key, name in _SPLITS.items()
        if f"{key}_images" in arrays
    }
    if "train" not in splits:
        raise DataError(f"{path} has no train_images, only {', '.join(sorted(arrays)) or 'no arrays'}")
    classes = 1 + max(int(split.labels.max()) for split in splits.values())
    images = sum(map(len, splits.values()))
    if classes > images:  # also keeps a damaged number from filling the memory with names
        raise DataError(
            f"{path} has label {classes - 1}, but only {counted(images, 'image')}: labels count from 0"
        )
    if labels and len(labels) < classes:
        raise DataError(
            f"{path} has label {classes - 1}, but data.labels names only "
            f"{counted(len(labels), 'class', 'classes')}"
        )
    names = tuple(map(label_named, labels))
    unclear = [name for name in names if not is_label(name) or names.count(name) > 1]
    if unclear:
        raise RecipeError(f"data.labels must be different, visible names, got {unclear[0]!r} in {path}")
    return SourceData(
        labels=names or tuple(map(str, range(classes))),
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
    )


def _require_known_splits(arrays: Iterable[str], path: Path) -> None:
    unknown = [
        key for key in arrays if key.endswith("_images") and key.removesuffix("_images") not in _SPLITS
    ]
    if unknown:
        raise DataError(
            f"{path} has {', '.join(unknown)}, which is not a split: rename it to train_images, val_images "
            "or test_images, or remove it"
        )


def _find(data_root: Path, file: str | None) -> Path:
    if file is not None or data_root.is_file():
        path = data_root if file is None else data_root / file
        if not path.is_file():
            raise DataError(f"the data file {path} is missing")
        return path
    if not data_root.is_dir():
        raise DataError(f"the data root {data_root} is neither a directory nor a file")
    found = sorted(data_root.glob("*.npz"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{data_root} has {len(found)} .npz files ({names}): choose one with --set data.file=NAME"
        )
    return found[0]


def _split(arrays: dict[str, npt.NDArray[np.generic]], key: str, geometry: Geometry, path: Path) -> Split:
    images, labels = arrays[f"{key}_images"], arrays.get(f"{key}_labels")
    if labels is None:
        raise DataError(f"{path} has {key}_images, but no {key}_labels")
    if images.ndim == _GREY_AXES:
        images = images[..., np.newaxis]  # (N, h, w, 1)
    if images.dtype != np.uint8 or images.ndim != _COLOUR_AXES or images.shape[3] not in _CHANNELS:
        raise DataError(
            f"{path}: {key}_images is {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, 3)"
        )
    if not images.size:
        raise DataError(f"{path}: {key}_images is empty, {images.shape}: add images, or remove it")
    # (N,), or MedMNIST's column (N, 1)
    if labels.ndim not in (1, 2) or labels.size != len(labels) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {key}_labels is {labels.dtype} {labels.shape}, expected one integer per image"
        )
    if len(labels) != len(images):
        raise DataError(f"{path} has {len(images)} {key}_images, but {len(labels)} {key}_labels")
    truth = labels.reshape(-1)  # (N,)
    if truth.min() < 0:
        raise DataError(f"{path}: {key}_labels has {truth.min()}, the lowest valid label is 0")
    if truth.max() >= np.iinfo(np.int64).max:
        raise DataError(f"{path}: {key}_labels has {truth.max()}: labels count from 0")
    names = tuple(f"{key} {number}" for number in range(len(images)))
    return Split(apply_geometry_to_all(images.astype(np.uint8), geometry), truth.astype(np.int64), names)
