"""MNIST and Fashion-MNIST from IDX files, gzipped or plain, in torchvision's or Debian's layout."""

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry
from serving.counted import counted
from training.data.splits import SourceData, Split
from training.data.storage.arrays import apply_geometry_to_all
from training.errors import DataError
from training.networks.torchvision_import import import_torchvision

_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DIGITS = tuple(str(digit) for digit in range(10))
_CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

# Installed by Debian's package dataset-fashion-mnist.
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

# IDX header: two zero bytes, the type, the number of axes, then each length as big-endian uint32.
_UNSIGNED_BYTES = 0x08


@dataclass(frozen=True, slots=True)
class _IdxDataset:
    """A data set of four IDX files."""

    name: str
    torchvision: str  # name of torchvision's class and of its directory
    labels: tuple[str, ...]
    elsewhere: tuple[Path, ...] = ()


_MNIST = _IdxDataset("MNIST", "MNIST", _DIGITS)
_FASHION = _IdxDataset("Fashion-MNIST", "FashionMNIST", _CLOTHES, (_DEBIAN,))


def load(geometry: Geometry, data_root: Path, *, download: bool) -> SourceData:
    """Load MNIST's published train and test splits (LeCun et al. 1998).

    Args:
        geometry: the size and channels of the loaded images.
        data_root: directory of the files, or of torchvision's MNIST/raw/.
        download: download missing files to the data root.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _load(_MNIST, geometry, data_root, download=download)


def load_fashion(geometry: Geometry, data_root: Path | None, *, download: bool) -> SourceData:
    """Load Fashion-MNIST's published splits (Xiao et al. 2017, arXiv:1708.07747).

    Args:
        geometry: the size and channels of the loaded images.
        data_root: as for `load`; None: the directory of Debian's package.
        download: as for `load`.

    Raises:
        DataError: a file is missing or damaged.
    """
    return _load(_FASHION, geometry, data_root, download=download)


def _load(dataset: _IdxDataset, geometry: Geometry, data_root: Path | None, *, download: bool) -> SourceData:
    roots = () if data_root is None else (data_root / dataset.torchvision / "raw", data_root)
    folders = (*roots, *dataset.elsewhere)
    folder = next((folder for folder in folders if not _missing(folder)), folders[0])
    missing = _missing(folder)
    if missing and download and data_root is not None:
        _download(dataset, data_root)
    elif download and missing:
        raise DataError("data.download=true needs --data-root, the directory to download to")
    elif missing:
        files = ", ".join(f"{name}[.gz]" for name in missing)
        raise DataError(
            f"{dataset.name} is not in {folder}, which has no {files}: name its directory with --data-root, "
            "or download it with --set data.download=true"
        )
    return SourceData(
        labels=dataset.labels,
        train=_read_split(folder, *_TRAIN, "train", geometry),
        test=_read_split(folder, *_TEST, "test", geometry),
    )


def _missing(folder: Path) -> list[str]:
    return [name for name in (*_TRAIN, *_TEST) if _find(folder, name) is None]


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    Returns: uint8, with that many axes.

    Raises:
        DataError: the file cannot be read, is not such an IDX file, or has the wrong size.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTES, axes)):
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {axes} axes: it begins {content[:4].hex()!r}"
        )
    shape = struct.unpack(f">{axes}I", content[4:header])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != expected:
        raise DataError(
            f"{path} has {len(content) - header} bytes of data, its shape {list(shape)} needs {expected}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_split(folder: Path, images_name: str, labels_name: str, name: str, geometry: Geometry) -> Split:
    images_path, labels_path = _find(folder, images_name), _find(folder, labels_name)
    if images_path is None or labels_path is None:
        raise DataError(
            f"{images_name} or {labels_name} is not in {folder}, although the data set was downloaded"
        )
    images = read_idx(images_path, axes=3)[..., np.newaxis]  # (N, 28, 28, 1)
    labels = read_idx(labels_path, axes=1)  # (N,)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {counted(len(images), 'image')}, but {labels_path} has "
            f"{counted(len(labels), 'label')}"
        )
    if labels.size and labels.max() >= len(_DIGITS):
        raise DataError(
            f"{labels_path} has label {labels.max()}, the highest valid label is {len(_DIGITS) - 1}"
        )
    names = tuple(f"{name} {number}" for number in range(len(labels)))
    return Split(apply_geometry_to_all(images, geometry), labels.astype(np.int64), names)


def _download(dataset: _IdxDataset, data_root: Path) -> None:
    try:
        datasets = import_torchvision("torchvision.datasets")
        getattr(datasets, dataset.torchvision)(str(data_root), download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{dataset.name} could not be downloaded to {data_root}: {error}") from error
