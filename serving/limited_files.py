"""Reads files that anybody may have put there: of limited size, and without waiting for ever."""

import errno
import os
import select
import stat
import time
from io import BufferedReader
from pathlib import Path

MAX_TEXT_BYTES = 64 * 2**20  # of files that people write, such as tokens and certificates
_PIPE_LIMIT_S = 10.0
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_CHUNK_BYTES = 2**20
_CHECK_VOLUME = "check its volume"
_REMEDIES = {
    errno.EACCES: "let the user of this process read it",
    errno.EPERM: "let the user of this process read it",
    errno.ELOOP: "remove or correct the symbolic link that leads back to itself",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EMFILE: "raise the limit on open files",
    errno.ENFILE: "raise the system's limit on open files",
    errno.EIO: _CHECK_VOLUME,
    errno.ENOTCONN: _CHECK_VOLUME,  # FUSE, after its program has died
    errno.ESTALE: _CHECK_VOLUME,  # NFS, after its server has lost the file
    errno.ETIMEDOUT: _CHECK_VOLUME,
    errno.EHOSTDOWN: _CHECK_VOLUME,
}
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it. Unlike `Path.open`, never waits for the writer of a pipe.

    Raises:
        OSError: the file cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    if kind := _KINDS.get(stat.S_IFMT(path.stat().st_mode)):
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file: write its content to one", str(path))
    return os.fdopen(os.open(path, _FLAGS), "rb")  # of a pipe that has taken its place, it reads nothing


def read_limited(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read a whole file. It may be read again: a pipe has its content only once.

    Raises:
        OSError: as `open_regular`, or the file has more bytes than the limit.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    _check_size(len(content), max_bytes, path)
    return content


def read_once(path: Path, max_bytes: int = MAX_TEXT_BYTES, *, limit_s: float = _PIPE_LIMIT_S) -> bytes:
    """Read a whole file, or what is written to a pipe, such as that of `<(command)` in a shell.

    Raises:
        OSError: it cannot be read, has more bytes than the limit, or its writer does not end in time.
    """
    content, until_s = bytearray(), time.monotonic() + limit_s
    descriptor = os.open(path, _FLAGS)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while poll.poll(max(0.0, 1000 * (until_s - time.monotonic()))):
            chunk = os.read(descriptor, _CHUNK_BYTES)
            if not chunk:
                return bytes(content)
            content += chunk
            _check_size(len(content), max_bytes, path)
    finally:
        os.close(descriptor)
    raise OSError(
        errno.ETIME, f"its writer has not ended after {limit_s:g} s: name a regular file", str(path)
    )


def why_unreadable(error: OSError) -> str:
    """Return why a file or folder cannot be read, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "")
    return (error.strerror or str(error)) + (f"; {remedy}" if remedy else "")


def describe_failure(error: Exception) -> str:
    """Return the message of an error; if a file or folder cannot be read, with what to do."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read: {why_unreadable(error)}"
    return str(error)


def is_unfit(error: OSError) -> bool:
    """Whether a file is too large, or not a regular file: others could be read the next time."""
    return error.errno in (errno.EFBIG, errno.EINVAL)


def _check_size(size_bytes: int, max_bytes: int, path: Path) -> None:
    if size_bytes > max_bytes:
        raise OSError(
            errno.EFBIG, f"it has more than {max_bytes} bytes, the limit: make it smaller", str(path)
        )
