"""Writes into a repository so that readers see all of it or nothing, and one publisher at a time writes.

A version is written to a temporary `.staging-*` folder in its model's folder, synced, then renamed; one that
is removed goes the other way. If a process dies, the kernel releases its lock, and the next publisher removes
the folder.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PREFIX = ".staging-"


def replace_text(path: Path, text: str) -> None:
    """Replace a file atomically, as `replace_bytes`."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically. The caller holds the lock on its folder, and syncs that."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.new")
    temporary.write_bytes(content)
    sync(temporary)
    temporary.rename(path)


def append_bytes(path: Path, content: bytes, *, keep_bytes: int | None = None) -> None:
    """Append to a file, and sync it. The caller holds the lock on its folder.

    Args:
        path: of the file. It need not exist.
        content: to append.
        keep_bytes: length to cut the file to before; None: all of it.
    """
    with path.open("ab") as file:
        if keep_bytes is not None:
            file.truncate(keep_bytes)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def require_writable(folder: Path) -> None:
    """Write a file into a folder, or into the nearest one above that exists, and leave nothing behind.

    Raises:
        OSError: it cannot be written. Its file name is that of the temporary file, or nothing.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=existing) as file:
        file.write(bytes(4096))  # a full disk may still take an empty file


def sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock on a folder, alone or with other readers; the kernel releases it if this process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a version or a model so that readers see all of it or nothing. The caller holds its lock."""
    leaving = folder.with_name(f"{_PREFIX}removed-{folder.name}")
    shutil.rmtree(leaving, ignore_errors=True)  # of one that was killed
    folder.rename(leaving)
    sync(leaving.parent)
    shutil.rmtree(leaving)


@contextmanager
def staging_folder(model_folder: Path) -> Iterator[Path]:
    """Create a locked folder next to the versions; remove it at the end unless it was renamed."""
    with ExitStack() as stack:
        with locked(model_folder):
            _remove_abandoned(model_folder)
            staging = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=model_folder))
            stack.enter_context(locked(staging))
        staging.chmod(
            0o755
        )  # with mkdtemp's 0700, a server that runs as another user could not read the version
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(model_folder: Path) -> None:
    for staging in model_folder.glob(_PREFIX + "*"):
        with suppress(OSError):  # a running publisher holds the lock, or has just removed the folder
            descriptor = os.open(staging, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(staging, ignore_errors=True)
            finally:
                os.close(descriptor)
