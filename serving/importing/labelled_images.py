"""Labelled images below <directory>/<label>/: found, halved, and decoded as the server does."""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image
from serving.bundle.captured import why_not_labelled
from serving.bundle.images import Pixels
from serving.cpu_quota import available_cores
from serving.errors import ImageError, UsageError

_MAX_NAMED = 5  # directories in one message
_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image file with its label and its digest."""

    path: Path
    label: int
    sha256: str


def find_labelled_files(root: Path, labels: Sequence[str]) -> list[LabelledFile]:
    """Find the files below <root>/<label>/, sorted by digest, one of each content.

    Raises:
        UsageError: there are none, or a directory is not named like a label.
    """
    if not root.is_dir():
        raise UsageError(
            f"--images {root} is not a directory: name one that holds a directory for each label"
        )
    if reason := why_not_labelled(root):
        raise UsageError(f"--images: {reason}")
    known = {unicodedata.normalize("NFC", label): index for index, label in enumerate(labels)}
    folders = _directories(root)
    unknown = [path.name for path in folders if unicodedata.normalize("NFC", path.name) not in known]
    if unknown:
        hint = "rename them, or leave them out"
        if split := next((name for name in unknown if name.lower() in _SPLITS), None):
            hint = f"{split!r} looks like a split: use --images {root / split}"
        named = ", ".join(map(repr, unknown[:_MAX_NAMED])) + (", ..." if len(unknown) > _MAX_NAMED else "")
        raise UsageError(
            f"--images {root}: {len(unknown)} of {len(folders)} directories are not labels of the model "
            f"({named}): {hint}"
        )
    found = {}
    for folder in folders:
        label = known[unicodedata.normalize("NFC", folder.name)]
        try:
            found.update({file.sha256: file for file in _files(folder, label)})
        except OSError as error:
            raise UsageError(f"--images: {error.filename} cannot be read: {error.strerror}") from error
    if not found:
        raise UsageError(f"--images {root} has no files in directories that are named like labels: add some")
    return sorted(found.values(), key=lambda file: (file.label, file.sha256))


def _directories(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"--images {root} cannot be read: {error.strerror}") from error


def _files(folder: Path, label: int) -> Iterator[LabelledFile]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                yield LabelledFile(path, label, hashlib.file_digest(file, "sha256").hexdigest())


def halve(files: Sequence[LabelledFile]) -> tuple[list[LabelledFile], list[LabelledFile]]:
    """Split files in two halves, each label evenly, by content: the same images are always split the same.

    Args:
        files: sorted by label, then by digest.
    """
    return list(files[::2]), list(files[1::2])


def decode_batches(
    files: Sequence[LabelledFile], geometry: Geometry, batch_size: int
) -> Iterator[tuple[Pixels, npt.NDArray[np.int64], int]]:
    """Decode files in batches, as the server does.

    Yields: images (N, H, W, C) uint8, their labels (N,), and the number of files that cannot be decoded. A
        batch may be empty.
    """
    limits = ImageLimits()

    def decode(file: LabelledFile) -> Pixels | None:
        try:
            return apply_geometry(decode_image(file.path.read_bytes(), limits), geometry)
        except (ImageError, OSError):
            return None

    with ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            decoded = list(pool.map(decode, batch))
            kept = [
                (image, file.label) for image, file in zip(decoded, batch, strict=True) if image is not None
            ]
            images = np.array([image for image, _ in kept], np.uint8).reshape(-1, *geometry.shape)
            yield images, np.array([label for _, label in kept], np.int64), len(batch) - len(kept)
