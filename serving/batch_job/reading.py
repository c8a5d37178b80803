"""Reads the bytes of one image: a file, a range of a tar file, or what is behind a URL."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.batch_job.archives import NO_CONTENT
from serving.bundle import ImageLimits
from serving.bundle.images import check_encoded_size
from serving.bundle.urls import is_url, url_file_system
from serving.errors import LenserveError, UsageError
from serving.limited_files import open_regular


class UnreadableFile(LenserveError):
    """The bytes of one image could not be read. Others of the same source may be readable."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the images of one source. Sent to other processes and machines."""

    base: str = ""  # what relative paths start at: an absolute path or a URL
    archive: str = ""  # path or URL of the tar file that holds the images
    limits: ImageLimits = field(default_factory=ImageLimits)

    def read(self, path: str, offset: int = 0, size_bytes: int = 0) -> bytes:
        """Read an encoded image.

        Args:
            path: as the source names it.
            offset: where it begins in the archive.
            size_bytes: its size in the archive; NO_CONTENT of archives.py: it has none.

        Raises:
            EmptyImage, ImageTooLarge: by its size in bytes.
            UnreadableFile: it cannot be read.
        """
        if not (path or self.archive):
            raise UnreadableFile("this row has no path")
        location = join(self.base, path)
        try:
            if self.archive:
                _check_member(size_bytes, self.limits)
                return _read_range(self.archive, int(offset), int(size_bytes))
            return _read_url(location, self.limits) if is_url(location) else _read_file(location, self.limits)
        except LenserveError:
            raise
        except OSError as error:
            raise UnreadableFile(f"the file cannot be read: {error.strerror or error}") from error
        except Exception as error:  # file systems of fsspec raise many kinds of errors
            reason = " ".join(str(error).split())  # in one line
            raise UnreadableFile(f"the file cannot be read: {type(error).__name__}: {reason}") from error


def join(base: str, path: str) -> str:
    """Return where a path leads that is relative to a folder or a URL; absolute paths and URLs stay."""
    if is_url(path) or not base:
        return path
    return f"{base.rstrip('/')}/{path.lstrip('/')}" if is_url(base) else os.path.join(base, path)  # noqa: PTH118 - any text


def open_file(location: str) -> Any:  # noqa: ANN401 - fsspec is untyped
    """Open a file or a URL for reading bytes.

    Raises:
        UsageError: it cannot be opened, or the package for its protocol is missing.
    """
    try:
        if not is_url(location):
            return open_regular(Path(location))
        file_system, path = url_file_system(location)
        return file_system.open(path, "rb")
    except OSError as error:
        raise UsageError(f"{location} cannot be read: {error.strerror or error}") from error


def _read_file(location: str, limits: ImageLimits) -> bytes:
    with open_regular(Path(location)) as file:
        check_encoded_size(os.fstat(file.fileno()).st_size, limits)
        return file.read(limits.max_bytes + 1)


def _read_url(location: str, limits: ImageLimits) -> bytes:
    file_system, path = url_file_system(location)
    with file_system.open(path, "rb") as file:
        content: bytes = file.read(limits.max_bytes + 1)
    return content


def _check_member(size_bytes: int, limits: ImageLimits) -> None:
    if size_bytes == NO_CONTENT:
        raise UnreadableFile(
            "the archive has no bytes for this name, or not in one piece: it is a link to what is not in the "
            "archive, a sparse file or a device"
        )
    check_encoded_size(size_bytes, limits)


def _read_range(archive: str, offset: int, size_bytes: int) -> bytes:
    if is_url(archive):
        file_system, path = url_file_system(archive)
        content: bytes = file_system.cat_file(path, start=offset, end=offset + size_bytes)
    else:
        with open_regular(Path(archive)) as file:
            content = os.pread(file.fileno(), size_bytes, offset)
    if len(content) < size_bytes:
        raise UnreadableFile(f"the archive ends after {len(content)} of its {size_bytes} bytes")
    return content
