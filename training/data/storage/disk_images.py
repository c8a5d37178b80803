"""Images that are too many for memory: rows of a file, read when they are asked for. Knows no torch.

They are read and not mapped: a mapping fetches an image page by page, ten times slower where it comes from
the disk, counts as the process's own memory, and where a disk fails it ends the process.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from serving.bundle.images import Pixels
from training.data.labels import Indices
from training.errors import DataError

_READERS = 8  # threads: a disk is fastest when it is asked for several rows at once
_FEWEST_BYTES_A_READER = 2**19  # less is read before a thread has begun
_CHUNK_BYTES = 2**24  # of all images, that `chunks` gives at once


class DiskImages:
    """(N, H, W, C) uint8 on disk. A class because it stands where an array would.

    An index, a slice or an array of indices gives a new array in memory with these images alone.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], rows: Indices | None = None) -> None:
        """Store where they are.

        Args:
            path: of the file.
            offset: bytes before the first image.
            shape: (N, H, W, C) of the file.
            rows: of the file, in the order in which they are given; none: all.
        """
        self._path = path
        self._offset = offset
        self._whole = shape
        self._rows = np.arange(shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (len(self._rows), *self._whole[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: "int | slice | Indices | list[int]") -> Pixels:
        """Read images.

        Raises:
            DataError: the file is gone, or shorter than it was.
        """
        chosen = self._rows[index]
        rows = np.atleast_1d(chosen)
        images = np.empty((len(rows), *self._whole[1:]), np.uint8)
        try:
            self._read(rows, images)
        except OSError as error:
            raise DataError(f"the decoded images in {self._path} cannot be read: {error}") from error
        return images if np.ndim(chosen) else images[0]

    def __iter__(self) -> Iterator[Pixels]:
        return (image for part in chunks(self) for image in part)

    def take(self, indices: "slice | Indices") -> "DiskImages":
        """The images at these indices, in their order, without reading them."""
        return DiskImages(self._path, self._offset, self._whole, self._rows[indices])

    def _read(self, rows: Indices, images: Pixels) -> None:
        if not images.size:
            return
        readers = min(_READERS, len(rows), -(-images.nbytes // _FEWEST_BYTES_A_READER))
        with self._path.open("rb", buffering=0) as file:

            def read(places: Indices) -> None:
                for place in places:
                    target = images[place]
                    start = self._offset + int(rows[place]) * target.nbytes
                    if os.preadv(file.fileno(), [target], start) != target.nbytes:
                        raise OSError(f"it ends within image {rows[place]}")

            places = np.array_split(np.arange(len(rows)), readers)
            if readers == 1:
                read(places[0])
            else:
                with ThreadPoolExecutor(readers) as pool:
                    list(pool.map(read, places))


Images = Pixels | DiskImages  # (N, H, W, C) uint8, in memory or on disk


def take(images: Images, indices: "slice | Indices") -> Images:
    """The images at these indices: a copy of those in memory, none of those on disk."""
    return images.take(indices) if isinstance(images, DiskImages) else images[indices]


def chunks(images: Images) -> Iterator[Pixels]:
    """All images in their order, a few at a time: (n, H, W, C) uint8."""
    count = max(1, _CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), count):
        yield np.ascontiguousarray(images[start : start + count])


def feed_digest(update: Callable[[memoryview], object], groups: Iterable[Images]) -> None:
    """Give the bytes of all images to a digest, a few images at a time."""
    for images in groups:
        for part in chunks(images):
            update(part.data)
