"""CIFAR-10 as published (Krizhevsky 2009), in binary or Python batches, or as .npz; pickles run no code."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.data.sources import npz
from training.data.splits import SourceData, Split
from training.data.storage.arrays import apply_geometry_to_all
from training.errors import DataError
from training.networks.torchvision_import import import_torchvision
from training.recipe import DataRecipe

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE, _CHANNELS = 32, 3
_IMAGE_BYTES = _SIDE * _SIDE * _CHANNELS
_ARCHIVE = "cifar10.npz"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_BINARY, _PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"

_Batch = tuple[Pixels, npt.NDArray[np.uint8]]  # rows (N, 3072) and labels (N,)

# All globals in the published batches; dictionaries, lists and bytes need none.
_ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def load(geometry: Geometry, data_root: Path, recipe: DataRecipe) -> SourceData:
    """Load the published train and test splits, from any of the three layouts.

    Args:
        geometry: the size and channels of the loaded images.
        data_root: directory of cifar10.npz, cifar-10-batches-bin/ or cifar-10-batches-py/.
        recipe: for data.download and data.labels.

    Raises:
        DataError: the files are missing or damaged.
    """
    if (data_root / _ARCHIVE).is_file():
        return npz.read(data_root / _ARCHIVE, geometry, recipe.labels or LABELS)
    if recipe.download and not any((data_root / folder).is_dir() for folder in (_BINARY, _PYTHON)):
        _download(data_root)
    for folder, suffix, read in ((_BINARY, ".bin", _read_binary), (_PYTHON, "", _read_pickled)):
        if (data_root / folder).is_dir():
            train, test = (
                _join([read(data_root / folder / f"{name}{suffix}") for name in names], geometry, split)
                for split, names in (("train", _TRAIN), ("test", _TEST))
            )
            return SourceData(labels=LABELS, train=train, test=test)
    raise DataError(
        f"CIFAR-10 is not in {data_root}, which has no {_ARCHIVE}, {_BINARY}/ or {_PYTHON}/: "
        "name its directory with --data-root, or download it with --set data.download=true"
    )


def _join(parts: Sequence[_Batch], geometry: Geometry, split: str) -> Split:
    rows = np.concatenate([rows for rows, _ in parts])  # (N, 3072)
    labels = np.concatenate([labels for _, labels in parts])  # (N,)
    images = rows.reshape(-1, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
    names = tuple(f"{split} {number}" for number in range(len(labels)))
    return Split(apply_geometry_to_all(images, geometry), labels.astype(np.int64), names)


def _read_binary(path: Path) -> _Batch:
    """Read records of one label byte and 3,072 pixel bytes."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not len(content) or len(content) % (1 + _IMAGE_BYTES):
        raise DataError(f"{path} has {len(content)} bytes, not a multiple of {1 + _IMAGE_BYTES}")
    rows = content.reshape(-1, 1 + _IMAGE_BYTES)
    return rows[:, 1:], _checked(rows[:, 0], path)


def _read_pickled(path: Path) -> _Batch:
    """Read a pickled dictionary with `data`, (N, 3072), and `labels`, N numbers."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        rows, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.uint8)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} is not a CIFAR-10 batch: {error}") from error
    if rows.shape != (len(labels), _IMAGE_BYTES):
        raise DataError(
            f"{path}: {len(labels)} labels need data of shape {(len(labels), _IMAGE_BYTES)}, got {rows.shape}"
        )
    return rows, _checked(labels, path)


def _checked(labels: npt.NDArray[np.uint8], path: Path) -> npt.NDArray[np.uint8]:
    if labels.max() >= len(LABELS):
        raise DataError(f"{path} has label {labels.max()}, the highest valid label is {len(LABELS) - 1}")
    return labels


class _ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays and rejects every other class or function, so that no file can run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401 - as the base class has it
        """Resolve a global of the pickle, if it is allowed."""
        if (module_name, global_name) not in _ALLOWED_GLOBALS:
            raise DataError(
                f"the file loads {module_name}.{global_name}, which is not allowed: it is not CIFAR-10"
            )
        # NumPy 2 renamed this module.
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _download(data_root: Path) -> None:
    try:
        import_torchvision("torchvision.datasets").CIFAR10(str(data_root), download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"CIFAR-10 could not be downloaded to {data_root}: {error}") from error
