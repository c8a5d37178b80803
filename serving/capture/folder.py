"""The files of captured images: names, staging, tables, and the limits on their size and age.

<folder>/<model>/predicted/<label>/<name>.jpg, and a line for each in <folder>/<model>/answers/<name>.jsonl.
`not-labels.txt` in `predicted` says what its folders are.
A name is the time of capture and the number of the worker. Each worker writes and removes its own files, so
workers need no lock on each other. Images that were moved to other folders are never touched.
"""

import fcntl
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from serving.bundle.captured import ANSWERS, NOT_LABELS, NOT_LABELS_FILE, PREDICTED

_STAGING = ".staging"

_BLOCK_BYTES = 4096  # a file takes whole blocks of the disk
_LINES_PER_TABLE = 1000
_MAX_NAME_BYTES = 200  # of 255, in UTF-8
_NAME_TIME = "%Y%m%dT%H%M%S%fZ"
_NAME = re.compile(r"\d{8}T\d{12}Z-(?P<worker>\d{1,9})", re.ASCII)
_LINE_BYTES = 256  # of a table, about


class FolderInUse(OSError):
    """Another server captures into this folder."""


@dataclass(frozen=True, slots=True)
class CapturedImage:
    """An encoded image and its answer."""

    encoded: bytes
    suffix: str  # .jpg, .png, ...
    model: str
    version: int
    label: str
    index: int  # of the label
    confidence: float
    second: str  # the second label
    margin: float


@dataclass(slots=True)
class _Table:
    """A table of at most 1,000 lines."""

    path: Path
    last: str  # name of the last image in it, or a later name
    lines: int


class CaptureFolder:
    """The images that one worker has captured, oldest first, at most `max_bytes` of them.

    Independent of queues and threads: one thread calls it.
    """

    def __init__(self, root: Path, *, worker: int, workers: int, max_bytes: int, max_age_s: float) -> None:
        """Store the options.

        Args:
            root: the folder of all models and workers.
            worker: number of this worker.
            workers: number of workers, whose numbers are consecutive. Files of a worker that no longer exists
                belong to one that does.
            max_bytes: on disk, for this worker.
            max_age_s: older images are removed.
        """
        self._root = root
        self._worker = worker
        self._workers = workers
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._images: deque[tuple[str, Path, int]] = deque()  # name, path, bytes on disk; oldest first
        self._tables: list[_Table] = []  # of all models
        self._open_tables: dict[str, _Table] = {}  # by model
        self._lock: BinaryIO | None = None
        self._last_us = 0
        self.size_bytes = 0

    def open(self) -> None:
        """Lock this worker's part of the folder, remove what a killed process left, and find its images.

        Raises:
            FolderInUse: another server captures into the folder.
            OSError: the folder cannot be read or written.
        """
        staging = self._root / _STAGING
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / f"lock-{self._worker}").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when the process dies
        except BlockingIOError as error:
            lock.close()
            raise FolderInUse(
                f"another server captures into {self._root}: give each server its own --capture-dir"
            ) from error
        self._lock = lock
        for leftover in self._own(staging):
            leftover.unlink(missing_ok=True)
        self._find_images()
        self._find_tables()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def add(self, image: CapturedImage, now_s: float) -> bool:
        """Write an image and its line, after older ones have made room; return False if it is too large.

        Raises:
            OSError: the disk is full, for example. Nothing half-written is left.
        """
        size_bytes = _on_disk(len(image.encoded))
        if size_bytes > self._max_bytes:
            return False
        name = self._new_name(now_s)
        model = self._root / image.model
        path = model / PREDICTED / folder_name(image.label, image.index) / f"{name}{image.suffix}"
        line = _line(image, path.relative_to(model), now_s)
        self._remove_while(lambda _: self.size_bytes + size_bytes > self._max_bytes)
        staged = self._root / _STAGING / f"{name}{image.suffix}"
        try:
            staged.write_bytes(image.encoded)
            path.parent.mkdir(parents=True, exist_ok=True)
            _mark(model / PREDICTED)
            staged.rename(path)
        except BaseException:
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            raise
        self._images.append((name, path, size_bytes))
        self.size_bytes += size_bytes
        self._append(self._table(image.model, name), line)
        return True

    def expire(self, now_s: float) -> None:
        """Remove images that are too old.

        Raises:
            OSError: a file cannot be removed.
        """
        oldest = _name_at(round((now_s - self._max_age_s) * 1e6))
        self._remove_while(lambda name: name < oldest)

    def _remove_while(self, is_over: Callable[[str], bool]) -> None:
        while self._images and is_over(self._images[0][0]):
            _, path, size_bytes = self._images[0]
            path.unlink(missing_ok=True)  # it may have been moved, to be labelled
            self._images.popleft()
            self.size_bytes -= size_bytes
        oldest = self._images[0][0] if self._images else ""
        for table in [each for each in self._tables if not oldest or each.last < oldest]:
            table.path.unlink(missing_ok=True)
            self._tables.remove(table)
            self._open_tables = {
                model: each for model, each in self._open_tables.items() if each is not table
            }

    def _new_name(self, now_s: float) -> str:
        """Return a name that no other image has, later than all others of this worker."""
        self._last_us = max(round(now_s * 1e6), self._last_us + 1)
        return f"{_name_at(self._last_us)}-{self._worker}"

    def _table(self, model: str, name: str) -> _Table:
        """Return the table for the line of an image."""
        table = self._open_tables.get(model)
        if table is None or table.lines >= _LINES_PER_TABLE:
            path = self._root / model / ANSWERS / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = self._open_tables[model] = _Table(path, name, 0)
            self._tables.append(table)
        table.last = name
        table.lines += 1
        return table

    @staticmethod
    def _append(table: _Table, line: bytes) -> None:
        """Append a line, whole or not at all."""
        descriptor = os.open(table.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            end = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, line)
            except OSError:
                written = 0
                raise
            finally:
                if written < len(line):
                    os.ftruncate(descriptor, end)
            if written < len(line):
                raise OSError(f"{table.path}: only {written} of {len(line)} bytes were written")
        finally:
            os.close(descriptor)

    def _find_images(self) -> None:
        paths = [path for path in self._root.glob(f"*/{PREDICTED}/*/*") if self._is_own(path)]
        self._images.clear()
        for path in sorted(paths, key=lambda path: path.stem):
            with suppress(FileNotFoundError):  # it was moved now
                self._images.append((path.stem, path, _on_disk(path.stat().st_size)))
        self.size_bytes = sum(size for _, _, size in self._images)

    def _find_tables(self) -> None:
        """Take over tables of an earlier process. Which images they name is known from the next table."""
        self._tables.clear()
        self._open_tables.clear()
        newest = self._images[-1][0] if self._images else ""
        for answers in self._root.glob(f"*/{ANSWERS}"):
            paths = sorted(self._own(answers))
            lasts = [*(path.stem for path in paths[1:]), newest]
            self._tables.extend(_Table(path, last, 0) for path, last in zip(paths, lasts, strict=False))

    def _own(self, folder: Path) -> Iterator[Path]:
        return (path for path in folder.iterdir() if self._is_own(path))

    def _is_own(self, path: Path) -> bool:
        """Whether a file was captured by this worker, or by one that no longer exists."""
        named = _NAME.fullmatch(path.stem)
        return named is not None and (int(named["worker"]) - self._worker) % self._workers == 0


def _mark(predicted: Path) -> None:
    """Say in the folder that its folders are not labels. A marker that was cut off by a kill counts too."""
    marker = predicted / NOT_LABELS_FILE
    if not marker.exists():
        marker.write_text(NOT_LABELS, encoding="utf-8")


def folder_name(label: str, index: int) -> str:
    """Return the name of a label's folder: the label, if a folder can have that name."""
    is_plain = (
        label == label.strip()
        and label.isprintable()
        and "/" not in label
        and not label.startswith(".")
        and len(label.encode()) <= _MAX_NAME_BYTES
    )
    return label if is_plain else f"label-{index}"


def _name_at(time_us: int) -> str:
    """Return a time as a name: names sort like times."""
    seconds, microseconds = divmod(max(0, time_us), 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds).strftime(_NAME_TIME)


def _on_disk(size_bytes: int) -> int:
    """Return what an image of this size takes, with its line."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES + _LINE_BYTES


def _line(image: CapturedImage, path: Path, now_s: float) -> bytes:
    row = {
        "file": str(path),
        "at": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds"),
        "version": image.version,
        "label": image.label,
        "confidence": round(image.confidence, 6),
        "second": image.second,
        "margin": round(image.margin, 6),
    }
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
