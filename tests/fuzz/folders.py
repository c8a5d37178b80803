"""A folder for files that are replaced thousands of times."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a disk would take a hundred times as long


@contextmanager
def fast_folder() -> Iterator[Path]:
    """Yield an empty folder, in memory if possible."""
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)
