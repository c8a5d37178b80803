"""Replaces files atomically, and locks them between processes. A killed writer leaves old or new content."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.bundle.staging import sync
from serving.errors import UsageError
from training.errors import WriteError

RUN_AGAIN = "make room or correct its permissions, and use the same command again"
RESUME = "make room or correct its permissions, and continue with --resume; nothing is lost"


def replace_file(path: Path, content: bytes, remedy: str = RUN_AGAIN) -> None:
    """Replace a file's content atomically and durably. One writer at a time.

    Args:
        path: the file.
        content: its new content.
        remedy: the last part of the message if it cannot be written.

    Raises:
        WriteError: the file cannot be written; it keeps its old content.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path, remedy):
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()  # half a file on a full disk takes the room that is missing


@contextmanager
def writing(path: Path, remedy: str = RUN_AGAIN) -> Iterator[None]:
    """Report a write that fails as one line.

    Args:
        path: named where the error itself names no file, as that of a full disk.
        remedy: the last part of the message.

    Raises:
        WriteError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        named = path if error.filename is None else error.filename
        # shutil.copytree collects (source, target, reason) of each file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise WriteError(f"{named} cannot be written: {reason}; {remedy}") from error


@contextmanager
def exclusive_lock(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if missing. Other processes of the machine wait."""
    with writing(lock_file):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file.open("wb")
    with lock:  # the kernel releases it when the process dies
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_utf8(path: Path, what: str) -> Path:
    """Return the path, if its absolute form is UTF-8.

    ONNX Runtime opens no others, and reports and manifests hold paths as text.

    Raises:
        UsageError: the path is not UTF-8.
    """
    named = os.fsencode(path.absolute())
    try:
        named.decode()
    except UnicodeDecodeError as error:
        shown = named.decode(errors="backslashreplace")
        raise UsageError(
            f"{what} must be a path in UTF-8, got {shown}: rename it, or choose another"
        ) from error
    return path
