"""Replaces files atomically, and locks them between processes. A killed writer leaves old or new content."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file's content atomically and durably. One writer at a time."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def exclusive_lock(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if missing. Other processes of the machine wait."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("wb") as lock:  # the kernel releases it when the process dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sync_directory(folder: Path) -> None:
    """Make renames in a directory survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
