"""What a batch classifies: the images of a folder, a list, a table, a tar file or a URL, in a fixed order.

Images are named as the source names them: relative to the folder, as in the list, the column or the tar file.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from serving.batch_job.archives import list_archive
from serving.batch_job.columns import Columns, as_objects
from serving.batch_job.reading import Reader, open_file
from serving.batch_job.tables import TABLE_SUFFIXES, column_of_table
from serving.bundle import ImageLimits
from serving.bundle.images import IMAGE_SUFFIXES
from serving.bundle.urls import is_url, url_file_system
from serving.errors import UsageError
from serving.text_files import without_mark

STDIN = "-"
_LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
_COMPRESSED_SUFFIXES = frozenset({".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Sizes = npt.NDArray[np.int64]
_Identity = tuple[int, int]  # of a folder: device and inode


@dataclass(frozen=True, slots=True)
class Source:
    """The images of a batch."""

    name: str  # as the user named it
    paths: list[str]
    reader: Reader
    digest: str  # SHA-256 of everything that determines which images are read, as far as the source tells
    notes: tuple[str, ...] = ()  # what was ignored
    ranges: Sizes | None = None  # (N, 2): offset and size in a tar file

    def batch(self, rows: range) -> Columns:
        """Return rows as `FileClassifier` takes them: columns of the same length."""
        part = slice(rows.start, rows.stop)
        columns = {"row": np.arange(rows.start, rows.stop), "path": as_objects(self.paths[part])}
        if self.ranges is not None:
            columns |= {"offset": self.ranges[part, 0], "size_bytes": self.ranges[part, 1]}
        return columns


def open_source(source: str, *, column: str, root: str | None, limits: ImageLimits) -> Source:
    """List the images of a source.

    Args:
        source: a folder, a list (.txt, or - for stdin), a table (.csv, .tsv, .parquet), a .tar, one image, or
            the URL of one of them.
        column: of a table, the column with the paths.
        root: what relative paths of a list or a table start at: a folder or a URL. None: the folder of the
            list or the table; of stdin, the working directory.
        limits: limits on one image.

    Raises:
        UsageError: the source is missing, cannot be read, or has no images.
    """
    if source == STDIN:
        return _listed(source, _lines(sys.stdin.buffer.read()), root or str(Path.cwd()), limits)
    folder = _url_folder(source, limits) if is_url(source) else _folder(source, limits)
    return folder or _file(source, column, root, limits)


def _file(source: str, column: str, root: str | None, limits: ImageLimits) -> Source:
    suffix = PurePosixPath(source).suffix.lower()
    parent = source.rpartition("/")[0] if is_url(source) else str(Path(source).absolute().parent)
    if suffix in _LIST_SUFFIXES:
        with open_file(source) as file:
            return _listed(source, _lines(file.read()), root or parent, limits)
    if suffix in TABLE_SUFFIXES:
        return _listed(source, column_of_table(source, column), root or parent, limits)
    if suffix == ".tar":
        return _archive(source, limits)
    if suffix in IMAGE_SUFFIXES:
        return _listed(source, [source if is_url(source) else str(Path(source).absolute())], "", limits)
    if suffix in _COMPRESSED_SUFFIXES:
        raise UsageError(
            f"{source} is compressed, so its images cannot be read in parts: decompress it first"
        )
    kinds = "a directory, a list (.txt), a table (.csv, .tsv, .parquet), a .tar or an image"
    raise UsageError(f"{source} has the suffix {suffix!r}, expected {kinds}: rename it")


def _folder(source: str, limits: ImageLimits) -> Source | None:
    """Return None if it is a file."""
    if not Path(source).exists():
        raise UsageError(f"{source}: no such file or directory")
    if not Path(source).is_dir():
        return None
    found = sorted(_files_below(source))
    ignored: Counter[str] = Counter()
    images = [(path, size) for path, size in found if _is_image(path, ignored)]
    base = str(Path(source).absolute())
    return _sized(source, images, ignored, Reader(base, limits=limits))


def _files_below(source: str) -> Iterator[tuple[str, int]]:
    """Yield the path, relative to the folder, and the size of each file. Links to folders are followed."""
    # Folders to list: their path, what names in them begin with, and the folders above them, so that a link
    # to one of those is not followed without end.
    folders: list[tuple[str, str, tuple[_Identity, ...]]] = [(source, "", (_identity(os.stat(source)),))]  # noqa: PTH116 - of text
    while folders:
        folder, prefix, above = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if (inner := _stat_of_folder(entry)) is None:
                        yield prefix + entry.name, _size_of(entry)
                    elif (identity := _identity(inner)) not in above:
                        folders.append((entry.path, f"{prefix}{entry.name}/", (*above, identity)))
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error.strerror}") from error


def _stat_of_folder(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """Return None for a file, and for a link to nothing or in a circle: it becomes a row with an error."""
    try:
        return entry.stat() if entry.is_dir() else None
    except OSError:
        return None


def _identity(stat: os.stat_result) -> _Identity:
    return stat.st_dev, stat.st_ino


def _size_of(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _url_folder(source: str, limits: ImageLimits) -> Source | None:
    """Return None if it is a file, or missing: object stores do not know empty folders."""
    file_system, path = url_file_system(source)
    try:
        if not file_system.isdir(path):
            return None
        found = file_system.find(path, detail=True)
    except Exception as error:  # file systems of fsspec raise many kinds of errors
        raise UsageError(f"{source} cannot be read: {error}") from error
    prefix = path.rstrip("/") + "/"
    ignored: Counter[str] = Counter()
    images = sorted(
        (name.removeprefix(prefix), int(facts.get("size") or 0))
        for name, facts in found.items()
        if _is_image(name, ignored)
    )
    return _sized(source, images, ignored, Reader(source, limits=limits))


def _archive(source: str, limits: ImageLimits) -> Source:
    ignored: Counter[str] = Counter()
    with open_file(source) as file:
        members = list_archive(source, file, partial(_is_image, ignored=ignored))
    ranges = np.array([member[1:] for member in members], np.int64).reshape(-1, 2)
    sized = [(name, size) for name, _, size in members]
    return _sized(source, sized, ignored, Reader("", archive=_absolute(source), limits=limits), ranges)


def _absolute(source: str) -> str:
    return source if is_url(source) else str(Path(source).absolute())


def _is_image(name: str, ignored: Counter[str]) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        ignored[suffix or "no suffix"] += 1
        return False
    return True


def _sized(
    source: str,
    images: list[tuple[str, int]],
    ignored: Counter[str],
    reader: Reader,
    ranges: Sizes | None = None,
) -> Source:
    if not images:
        raise UsageError(f"no images in {source}: expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    notes: tuple[str, ...] = ()
    if ignored:
        kinds = ", ".join(suffix for suffix, _ in ignored.most_common(5))
        count = "1 file" if ignored.total() == 1 else f"{ignored.total():,} files"
        notes = (f"{count} ignored ({kinds}): not a supported image type",)
    digest = _digest(f"{size}:{path}" for path, size in images)
    return Source(source, [path for path, _ in images], reader, digest, notes, ranges)


def _listed(source: str, paths: list[str], root: str, limits: ImageLimits) -> Source:
    if not paths:
        raise UsageError(
            f"{'stdin' if source == STDIN else source} names no images: write one path a line or row"
        )
    base = root if is_url(root) or not root else str(Path(root).absolute())
    return Source(source, paths, Reader(base, limits=limits), _digest([base, *paths]))


def _lines(text: bytes) -> list[str]:
    lines = without_mark(text).removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n").split(b"\n")
    return [os.fsdecode(line) for line in lines if line.strip()]


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(os.fsencode(text) + b"\0")
    return digest.hexdigest()
