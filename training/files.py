"""A file is replaced as a whole: whoever is killed while writing leaves the old content or the new one."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write beside, sync, rename, and sync the folder that holds the name."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
