"""MNIST from its idx files, gzipped or plain, as torchvision keeps them: <data root>/MNIST/raw."""

import gzip
import importlib
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry, apply_geometry
from serving.bundle.images import Pixels
from training.data.splits import Collected, Split
from training.errors import DataError

_FOLDER = Path("MNIST") / "raw"
_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DIGITS = tuple(str(digit) for digit in range(10))

_UNSIGNED_BYTES = 0x08  # idx: two zero bytes, the type, the number of axes, then each length, big-endian


def collect(geometry: Geometry, data_root: Path, *, download: bool) -> Collected:
    """The published train and test splits.

    Raises:
        DataError: a file is missing or damaged; names every file that was looked for.
    """
    folder = data_root / _FOLDER
    missing = [name for name in (*_TRAIN, *_TEST) if _find(folder, name) is None]
    if missing and download:
        _download(data_root)
    elif missing:
        files = ", ".join(f"{name}[.gz]" for name in missing)
        raise DataError(
            f"MNIST is not in {folder}: {files} not found; name its folder by --data-root, "
            "or let torchvision fetch it: --set data.download=true"
        )
    return Collected(
        labels=_DIGITS,
        train=_read_split(folder, *_TRAIN, "train", geometry),
        test=_read_split(folder, *_TEST, "test", geometry),
    )


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Read one idx file of unsigned bytes.

    Returns: an array with that many axes.

    Raises:
        DataError: names the file and both numbers.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTES, axes)):
        raise DataError(
            f"{path} is no idx file of unsigned bytes with {axes} axes: it begins {content[:4].hex()!r}"
        )
    shape = struct.unpack(f">{axes}I", content[4:header])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - header != expected:
        raise DataError(
            f"{path} holds {len(content) - header} bytes, its shape {list(shape)} needs {expected}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read_split(folder: Path, images_name: str, labels_name: str, name: str, geometry: Geometry) -> Split:
    images_path, labels_path = _find(folder, images_name), _find(folder, labels_name)
    if images_path is None or labels_path is None:
        raise DataError(f"MNIST was fetched, but {images_name} or {labels_name} is still not in {folder}")
    images = read_idx(images_path, axes=3)[..., np.newaxis]  # (N, 28, 28, 1)
    labels = read_idx(labels_path, axes=1)  # (N,)
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    if labels.size and labels.max() >= len(_DIGITS):
        raise DataError(f"{labels_path} holds label {labels.max()}, the highest is {len(_DIGITS) - 1}")
    names = tuple(f"{name} {number}" for number in range(len(labels)))
    return Split(_fit(images, geometry), labels.astype(np.int64), names)


def _fit(images: Pixels, geometry: Geometry) -> Pixels:
    return np.stack([apply_geometry(image, geometry) for image in images])  # (N, H, W, C)


def _download(data_root: Path) -> None:
    try:
        _torchvision_datasets().MNIST(str(data_root), download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"MNIST could not be fetched to {data_root}: {error}") from error


def _torchvision_datasets() -> ModuleType:
    """Import torchvision.datasets, also beside a CPU build of torch.

    The registry's torchvision is built for CUDA. Beside a CPU torch its compiled operators do not load, and
    its import ends in "operator torchvision::nms does not exist", because it registers fake kernels for
    two of them. Declaring the two schemas then is enough: no operator is ever called here. They must not be
    declared where the compiled operators do load: a second declaration aborts the process.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _declare_torchvision_operators()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    return importlib.import_module("torchvision.datasets")


_torchvision_libraries: list[object] = []  # a library's declarations last as long as it does


def _declare_torchvision_operators() -> None:
    import torch  # noqa: PLC0415 - only a download needs it

    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _torchvision_libraries.append(library)
