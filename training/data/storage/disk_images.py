"""Images on disk, for data sets larger than memory: rows of a file, read on access. Independent of torch.

The file is read, not memory-mapped: a mapping loads an image page by page, which is ten times slower from
disk, counts as memory of the process, and kills the process with SIGBUS if the disk fails.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from serving.bundle.images import Pixels
from training.data.labels import Indices
from training.errors import DataError

_READERS = 8  # threads: disks are fastest with several requests in flight
_MIN_BYTES_PER_READER = 2**19  # less is read faster than a thread starts
_CHUNK_BYTES = 2**24  # of images, yielded by `chunks` at once


class DiskImages:
    """(N, H, W, C) uint8 images on disk, indexed like an array.

    Indexing by a number, a slice or an array of indices reads those images into a new array.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], rows: Indices | None = None) -> None:
        """Refer to images in a file; nothing is read yet.

        Args:
            path: the file.
            offset: bytes before the first image.
            shape: (N, H, W, C) of the images in the file.
            rows: indices of the selected images, in order; None: all images.
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
        """Read images into memory.

        Returns: (n, H, W, C) uint8, or (H, W, C) for a single index.

        Raises:
            DataError: the file is missing or truncated.
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
        """Select images by index, in the given order, without reading them."""
        return DiskImages(self._path, self._offset, self._whole, self._rows[indices])

    def _read(self, rows: Indices, images: Pixels) -> None:
        if not images.size:
            return
        readers = min(_READERS, len(rows), -(-images.nbytes // _MIN_BYTES_PER_READER))
        with self._path.open("rb", buffering=0) as file:

            def read(places: Indices) -> None:
                for place in places:
                    target = images[place]
                    start = self._offset + int(rows[place]) * target.nbytes
                    if os.preadv(file.fileno(), [target], start) != target.nbytes:
                        raise OSError(f"the file ends within image {rows[place]}")

            places = np.array_split(np.arange(len(rows)), readers)
            if readers == 1:
                read(places[0])
            else:
                with ThreadPoolExecutor(readers) as pool:
                    list(pool.map(read, places))


Images = Pixels | DiskImages  # (N, H, W, C) uint8, in memory or on disk


def take(images: Images, indices: "slice | Indices") -> Images:
    """Select images by index: a copy if they are in memory, a reference if they are on disk."""
    return images.take(indices) if isinstance(images, DiskImages) else images[indices]


def chunks(images: Images) -> Iterator[Pixels]:
    """Yield all images in order, in arrays of about 16 MiB: (n, H, W, C) uint8, contiguous."""
    count = max(1, _CHUNK_BYTES // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(images), count):
        yield np.ascontiguousarray(images[start : start + count])


def feed_digest(update: Callable[[memoryview], object], groups: Iterable[Images]) -> None:
    """Feed the bytes of all images to a digest, chunk by chunk."""
    for images in groups:
        for part in chunks(images):
            update(part.data)
