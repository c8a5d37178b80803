"""Image files in class directories: <root>/train|val|test/<class>/, or <root>/<class>/ split by a seed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.bundle import Geometry
from training.data.splits import SourceData, Split
from training.data.storage.decoded_images import IN_MEMORY, DecodeOptions, decode_files
from training.errors import DataError

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file before decoding."""

    path: Path
    name: str  # path below the root
    label: int


def load(
    geometry: Geometry,
    root: Path,
    decode: DecodeOptions = IN_MEMORY,
    *,
    val_is_test: bool = False,
) -> SourceData:
    """Decode all image files, with the server's own code.

    Args:
        geometry: the size and channels of the decoded images.
        root: directory of the split directories, or of the class directories.
        decode: where decoded images are kept.
        val_is_test: use `val` as the test split if there is no `test`, as some published sets need.

    Raises:
        DataError: the directory is missing or has another layout, no image can be decoded, or there is too
            little disk space for the decoded images.
    """
    folders = _split_folders(root)
    if val_is_test and "test" not in folders and "validation" in folders:
        folders = {"train": folders["train"], "test": folders["validation"]}
    labels = _labels(folders.values(), root)
    undecodable: dict[str, str] = {}
    ignored: list[str] = []
    items = {name: list(_items(folder, root, labels, ignored)) for name, folder in folders.items()}
    streamed = exceeds(decode.limit_bytes, sum(map(len, items.values())), geometry)
    splits = {
        name: decode_split(some, geometry, undecodable, decode, streamed=streamed)
        for name, some in items.items()
    }
    if not any(len(split) for split in splits.values()):
        raise DataError(f"none of the {len(undecodable)} image files under {root} can be decoded")
    return SourceData(
        labels=labels,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        undecodable=undecodable,
        ignored=tuple(ignored),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise DataError(f"the data root {root} is not a directory")
    found = {_SPLITS[name]: root / name for name in _SPLITS if (root / name).is_dir()}
    if not found:
        return {"train": root}
    if "train" not in found:
        raise DataError(f"{root} has {', '.join(found)}, but no train directory")
    return found


def _labels(folders: Iterable[Path], root: Path) -> tuple[str, ...]:
    labels = sorted({path.name for folder in folders for path in _class_folders(folder)})
    if len(labels) < 2:  # noqa: PLR2004 - one class needs no classifier
        raise DataError(f"{root} has {len(labels)} class directories, at least 2 are needed")
    return tuple(labels)


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _items(folder: Path, root: Path, labels: tuple[str, ...], ignored: list[str]) -> Iterable[ImageFile]:
    for class_folder in _class_folders(folder):
        for path in sorted(path for path in class_folder.rglob("*") if path.is_file()):
            name = path.relative_to(root).as_posix()
            if is_image(path):
                yield ImageFile(path, name, labels.index(class_folder.name))
            else:
                ignored.append(name)


def is_image(path: Path) -> bool:
    """Check the file name's extension against the supported image types."""
    return path.suffix.lower() in _SUFFIXES


def exceeds(limit_bytes: int | None, images: int, geometry: Geometry) -> bool:
    """Compare the size of that many decoded images with the limit; None means unlimited."""
    return limit_bytes is not None and images * math.prod(geometry.shape) > limit_bytes


def decode_split(
    items: Sequence[ImageFile],
    geometry: Geometry,
    undecodable: dict[str, str],
    decode: DecodeOptions,
    *,
    streamed: bool,
) -> Split:
    """Decode files to model geometry. Skips undecodable files, and adds their reasons to `undecodable`."""
    paths = [item.path for item in items]
    images, reasons = decode_files(
        paths, geometry, decode.cache, streamed=streamed, on_progress=decode.on_progress
    )
    undecodable.update({items[index].name: why for index, why in reasons.items()})
    whole = Split(
        images, np.array([item.label for item in items], dtype=np.int64), tuple(item.name for item in items)
    )
    if not reasons:
        return whole
    return whole.take(np.array([index for index in range(len(items)) if index not in reasons], np.intp))
