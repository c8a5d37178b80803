"""A file is replaced as a whole: whoever is killed while writing leaves the old content or the new one."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write beside, sync, rename, and sync the folder that holds the name. One process at a time."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def exclusive_lock(lock_file: Path) -> Iterator[None]:
    """In here no other process of this machine holds the same file, which is made where it is missing."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("wb") as lock:  # the kernel releases it when its owner dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sync_directory(folder: Path) -> None:
    """Make what was renamed in a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
