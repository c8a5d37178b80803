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
from serving.counted import counted
from serving.cpu_quota import available_cores
from serving.errors import ImageError, UsageError

_MAX_NAMED = 5  # directories or labels in one message
_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image file with its label and its digest."""

    path: Path
    label: int
    sha256: str


def find_labelled_files(root: Path, labels: Sequence[str]) -> tuple[list[LabelledFile], list[str]]:
    """Find the files in <root>/<label>/, one of each content, without those of several labels.

    Returns: the files, sorted by label, then by digest; and what was left out, one sentence each.

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
        raise UsageError(
            f"--images {root}: {len(unknown)} of {len(folders)} directories are not labels of the model "
            f"({name_some(unknown)}): {hint}"
        )
    found: dict[str, dict[int, LabelledFile]] = {}  # digest -> label -> a file
    inner = []
    for folder in folders:
        label = known[unicodedata.normalize("NFC", folder.name)]
        try:
            for file in _files(folder, label):
                found.setdefault(file.sha256, {})[label] = file
            inner += _directories(folder)
        except OSError as error:
            raise UsageError(f"--images: {error.filename} cannot be read: {error.strerror}") from error
    files = [file for each in found.values() if len(each) == 1 for file in each.values()]
    left_out = _left_out(root, inner, [list(each.values()) for each in found.values() if len(each) > 1])
    if not files:
        reasons = "".join(f"; {each}" for each in left_out)
        raise UsageError(
            f"--images {root} has no files in directories that are named like labels: add some{reasons}"
        )
    return sorted(files, key=lambda file: (file.label, file.sha256)), left_out


def _left_out(
    root: Path, inner: Sequence[Path], contradicting: Sequence[Sequence[LabelledFile]]
) -> list[str]:
    """Say which directories and images are left out, and what to do.

    Args:
        root: --images.
        inner: directories in those of labels.
        contradicting: files of one content, for each content that several labels have.
    """
    said = []
    if inner:
        named = name_some([str(path.relative_to(root)) for path in inner])
        said.append(
            f"{counted(len(inner), 'subdirectory', 'subdirectories')} ignored ({named}): move images into "
            "the directory of their label itself"
        )
    if contradicting:
        example = " and ".join(repr(str(file.path.relative_to(root))) for file in contradicting[0])
        said.append(
            f"{counted(len(contradicting), 'image')} left out, in directories of several labels ({example}): "
            "keep each in that of its true label"
        )
    return said


def name_some(names: Sequence[str]) -> str:
    """Return the first names, quoted, and whether there are more."""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + (", ..." if len(names) > _MAX_NAMED else "")


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
