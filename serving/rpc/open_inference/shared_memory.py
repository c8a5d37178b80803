"""Regions of POSIX shared memory that clients have registered: tensors in them do not travel.

Off unless the operator names a pattern of keys. Regions are read and written by system calls, never mapped:
memory that its owner truncates makes a read short, where a mapping would end the process by SIGBUS.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.errors import InvalidRequest, InvalidTensor, Overloaded, RegionExists, UnknownRegion, Unsupported

_FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open keeps its objects on Linux
_KEY = re.compile(r"/?([^/\0]{1,254})")
_MAX_REGIONS = 256  # each holds a file descriptor


@dataclass(frozen=True, slots=True)
class Region:
    """What a client registered."""

    name: str
    key: str
    offset: int  # bytes, in the object behind the key
    byte_size: int
    descriptor: int


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a region, as a request names it."""

    region: str
    offset: int  # bytes, in the region
    byte_size: int


class Regions:
    """The registered regions. `async with` lets them all go at the end.

    Args:
        pattern: regular expression of whole keys, without their leading slash, that may be registered; None
            for no shared memory at all.
        max_bytes: of one tensor.
    """

    def __init__(self, pattern: str | None = None, *, max_bytes: int = 64 * 2**20) -> None:
        self._pattern = None if pattern is None else re.compile(pattern)
        self._max_bytes = max_bytes
        self._regions: dict[str, Region] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unregister("")

    @property
    def enabled(self) -> bool:
        """Whether anything can be registered."""
        return self._pattern is not None

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Let requests use a part of a shared memory object.

        Raises:
            Unsupported: shared memory is off.
            InvalidRequest: the key is not allowed, there is no such object, or it is smaller.
            RegionExists: the name is taken.
            Overloaded: there are too many.
        """
        if self._pattern is None:
            raise Unsupported("system shared memory is off: the server was started without a pattern of keys")
        if name in self._regions:
            raise RegionExists(f"shared memory region {name!r} is already registered")
        if not name or byte_size < 1:
            raise InvalidRequest(
                f"region {name!r} has {byte_size} bytes, expected a name and at least 1 byte"
            )
        if len(self._regions) >= _MAX_REGIONS:
            raise Overloaded(f"{_MAX_REGIONS} shared memory regions are registered, and that is the limit")
        descriptor = _open(self._file(key))
        try:
            _check_object(descriptor, key, offset, byte_size)
        except InvalidRequest:
            os.close(descriptor)
            raise
        self._regions[name] = Region(name, key, offset, byte_size, descriptor)

    def unregister(self, name: str) -> None:
        """Forget a region, or all where the name is empty. One that is not there is no error."""
        for each in [name] if name else list(self._regions):
            region = self._regions.pop(each, None)
            if region is not None:
                os.close(region.descriptor)

    def registered(self, name: str = "") -> list[Region]:
        """One region, or all where the name is empty.

        Raises:
            UnknownRegion: there is none of that name.
        """
        return [self._find(name)] if name else list(self._regions.values())

    def read(self, span: Span) -> bytes:
        """Copy bytes out of a region.

        Raises:
            UnknownRegion: nobody registered it.
            InvalidTensor: the span reaches beyond the region, or the region's owner has cut it.
        """
        region = self._checked(span)
        content = os.pread(region.descriptor, span.byte_size, region.offset + span.offset)
        if len(content) != span.byte_size:
            raise _cut(span, len(content))
        return content

    def write(self, span: Span, content: bytes) -> None:
        """Copy bytes into the beginning of a span.

        Raises:
            As `read`, and InvalidTensor: the span is smaller than the content.
        """
        region = self._checked(span)
        if len(content) > span.byte_size:
            raise InvalidTensor(
                f"{span.byte_size} bytes of shared memory region {span.region!r} are given for an output "
                f"of {len(content)} bytes"
            )
        start = region.offset + span.offset
        left = os.fstat(region.descriptor).st_size - start  # writing further would make the object grow
        if left < len(content):
            raise _cut(span, max(left, 0))
        written = os.pwrite(region.descriptor, content, start)
        if written < len(content):  # the object has holes, and there is no memory to fill them
            raise _cut(span, written)

    def _file(self, key: str) -> Path:
        match = _KEY.fullmatch(key)
        if match is None or match[1] in (".", ".."):
            raise InvalidRequest(
                f"{key!r} is not a shared memory key: expected a name with at most one slash before"
            )
        if self._pattern is None or not self._pattern.fullmatch(match[1]):
            raise InvalidRequest(f"shared memory key {key!r} is not one that the server allows")
        return _FOLDER / match[1]

    def _find(self, name: str) -> Region:
        if name not in self._regions:
            raise UnknownRegion(f"shared memory region {name!r} is not registered")
        return self._regions[name]

    def _checked(self, span: Span) -> Region:
        region = self._find(span.region)
        if span.offset < 0 or span.byte_size < 1 or span.offset + span.byte_size > region.byte_size:
            raise InvalidTensor(
                f"bytes {span.offset} to {span.offset + span.byte_size} are not within shared memory region "
                f"{span.region!r} of {region.byte_size} bytes"
            )
        if span.byte_size > self._max_bytes:
            raise InvalidTensor(
                f"a tensor in shared memory has {span.byte_size} bytes, the limit is {self._max_bytes}"
            )
        return region


def _open(file: Path) -> int:
    try:
        # Not a link that leads elsewhere, and no pipe that would be waited for.
        return os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"shared memory '/{file.name}' cannot be opened: {reason}") from error


def _check_object(descriptor: int, key: str, offset: int, byte_size: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{key!r} is not a shared memory object")
    if offset + byte_size > status.st_size:
        raise InvalidRequest(
            f"a region of {byte_size} bytes from byte {offset} was asked for, but shared memory {key!r} "
            f"has {status.st_size} bytes"
        )


def _cut(span: Span, left: int) -> InvalidTensor:
    return InvalidTensor(
        f"shared memory region {span.region!r} was cut by its owner: "
        f"{left} bytes are left of the {span.byte_size} that the request names"
    )
