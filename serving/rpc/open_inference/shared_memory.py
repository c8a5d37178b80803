"""Regions of POSIX shared memory, registered by clients that exchange tensors through them.

Off unless the operator sets a pattern for keys. Each token has separate regions.

Regions are read and written with system calls, not mapped: if the client truncates the memory, a read is
short, whereas access to a mapping would kill the process with SIGBUS.
"""

import copy
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.errors import InvalidRequest, InvalidTensor, Overloaded, RegionExists, UnknownRegion, Unsupported

_FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open creates its objects on Linux
_KEY = re.compile(r"/?([^/\0]{1,254})")
_MAX_REGIONS = 256  # each holds a file descriptor


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of a shared memory object."""

    name: str
    key: str
    offset: int  # in bytes, from the start of the object
    byte_size: int
    descriptor: int
    owner: str = ""


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Location of a tensor of a request in shared memory."""

    region: str
    offset: int  # in bytes, from the start of the region
    byte_size: int


class Regions:
    """The registered regions. `async with` unregisters all of them at the end.

    Args:
        pattern: regular expression that a key without its leading slash must match to be registered; None
            turns shared memory off.
        max_bytes: maximum size of a tensor.
    """

    def __init__(self, pattern: str | None = None, *, max_bytes: int = 64 * 2**20) -> None:
        self._pattern = None if pattern is None else re.compile(pattern)
        self._max_bytes = max_bytes
        self._owner = ""
        self._regions: dict[tuple[str, str], Region] = {}  # by owner and name

    def of(self, owner: str) -> "Regions":
        """Return the regions of an owner: for it, those of others do not exist."""
        if owner == self._owner or not self.enabled:  # without regions, all owners are alike
            return self
        owned = copy.copy(self)  # shares the registered regions
        owned._owner = owner  # noqa: SLF001 - of the same class
        return owned

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for region in self._regions.values():
            os.close(region.descriptor)
        self._regions.clear()

    @property
    def enabled(self) -> bool:
        """Whether regions can be registered."""
        return self._pattern is not None

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a part of a shared memory object for use in requests.

        Raises:
            Unsupported: shared memory is off.
            InvalidRequest: the key is not allowed, another owner has registered it, or the object is missing
                or too small.
            RegionExists: the name is already registered.
            Overloaded: too many regions are registered.
        """
        if self._pattern is None:
            raise Unsupported(
                "system shared memory is off: start the server with --shared-memory-pattern to allow it"
            )
        if (self._owner, name) in self._regions:
            raise RegionExists(f"shared memory region {name!r} is already registered")
        if not name or byte_size < 1:
            raise InvalidRequest(
                f"shared memory region {name!r} has {byte_size} bytes, expected a name and at least 1 byte"
            )
        if len(self.registered()) >= _MAX_REGIONS:
            raise Overloaded(
                f"{_MAX_REGIONS} shared memory regions are registered, the limit: unregister some"
            )
        descriptor = _open(self._file(key))
        try:
            _check_object(descriptor, key, offset, byte_size)
            self._check_owner(descriptor, key)
        except InvalidRequest:
            os.close(descriptor)
            raise
        self._regions[self._owner, name] = Region(name, key, offset, byte_size, descriptor, self._owner)

    def unregister(self, name: str) -> None:
        """Unregister a region, or all if the name is empty. Unknown names are ignored, as in Triton."""
        for each in [name] if name else [region.name for region in self.registered()]:
            region = self._regions.pop((self._owner, each), None)
            if region is not None:
                os.close(region.descriptor)

    def registered(self, name: str = "") -> list[Region]:
        """Return one region, or all regions if the name is empty.

        Raises:
            UnknownRegion: the region is not registered.
        """
        if name:
            return [self._find(name)]
        return [region for region in self._regions.values() if region.owner == self._owner]

    def read(self, location: TensorLocation) -> bytes:
        """Copy a tensor out of its region.

        Raises:
            UnknownRegion: the region is not registered.
            InvalidTensor: the tensor is not within the region, or the client truncated the memory.
        """
        region = self._checked(location)
        content = os.pread(region.descriptor, location.byte_size, region.offset + location.offset)
        if len(content) != location.byte_size:
            raise _truncated(location, len(content))
        return content

    def write(self, location: TensorLocation, content: bytes) -> None:
        """Copy a tensor into its region.

        Raises:
            UnknownRegion: as `read`.
            InvalidTensor: as `read`, or the content does not fit.
        """
        region = self._checked(location)
        if len(content) > location.byte_size:
            raise InvalidTensor(
                f"an output of {len(content)} bytes does not fit into {location.byte_size} bytes of "
                f"shared memory region {location.region!r}"
            )
        start = region.offset + location.offset
        left = os.fstat(region.descriptor).st_size - start  # more would extend the object
        if left < len(content):
            raise _truncated(location, max(left, 0))
        written = os.pwrite(region.descriptor, content, start)
        if written < len(content):  # the object has holes, and the memory to fill them ran out
            raise _truncated(location, written)

    def _file(self, key: str) -> Path:
        match = _KEY.fullmatch(key)
        if match is None or match[1] in (".", ".."):
            raise InvalidRequest(
                f"{key!r} is not a shared memory key: expected a name, with at most one slash before it"
            )
        if self._pattern is None or not self._pattern.fullmatch(match[1]):
            raise InvalidRequest(
                f"shared memory key {key!r} does not match the server's --shared-memory-pattern"
            )
        return _FOLDER / match[1]

    def _find(self, name: str) -> Region:
        region = self._regions.get((self._owner, name))
        if region is None:
            raise UnknownRegion(f"shared memory region {name!r} is not registered")
        return region

    def _check_owner(self, descriptor: int, key: str) -> None:
        """Check that no other owner has registered the object: both could read and write it."""
        status = os.fstat(descriptor)
        for region in self._regions.values():
            if region.owner != self._owner and os.path.samestat(os.fstat(region.descriptor), status):
                raise InvalidRequest(
                    f"shared memory key {key!r} is in use by another token: choose another key"
                )

    def _checked(self, location: TensorLocation) -> Region:
        region = self._find(location.region)
        end = location.offset + location.byte_size
        if location.offset < 0 or location.byte_size < 1 or end > region.byte_size:
            raise InvalidTensor(
                f"bytes {location.offset} to {end} are not within shared memory region {location.region!r} "
                f"of {region.byte_size} bytes"
            )
        if location.byte_size > self._max_bytes:
            raise InvalidTensor(
                f"a tensor in shared memory has {location.byte_size} bytes, the limit is {self._max_bytes}"
            )
        return region


def _open(file: Path) -> int:
    try:
        # Do not follow symbolic links or wait for the other end of a pipe.
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
            f"a region of {byte_size} bytes from byte {offset} is not inside shared memory {key!r} of "
            f"{status.st_size} bytes"
        )


def _truncated(location: TensorLocation, left: int) -> InvalidTensor:
    return InvalidTensor(
        f"shared memory region {location.region!r} was truncated by its owner: "
        f"{left} bytes are left of the {location.byte_size} that the request needs"
    )
