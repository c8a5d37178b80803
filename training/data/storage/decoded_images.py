"""Decodes image files, with a cache on disk: in model geometry, keyed by the content of the files."""

import errno
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import numpy as np

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image
from serving.bundle import geometry as geometry_code
from serving.bundle import images as images_code
from serving.bundle import jpeg as jpeg_code
from serving.bundle import resampling as resampling_code
from serving.bundle.images import Pixels
from serving.bundle.staging import sync
from serving.errors import ImageError
from training.atomic_files import exclusive_lock, replace_file
from training.data.storage.disk_images import DiskImages, Images
from training.devices.memory import GIB
from training.errors import DataError

_LIMITS = ImageLimits()
_DECODER = (geometry_code, images_code, jpeg_code, resampling_code)  # makes pixels of a file
_DECODER_PACKAGES = ("pillow", "simplejpeg", "cykooz-resizer")
_MAX_PENDING = 4096  # files submitted to the threads at once; a million futures would fill the memory
_PROGRESS_INTERVAL = 64  # files
_UNFINISHED = ".decoding-"

Undecodable = dict[int, str]  # index of a file -> reason
# Called with the numbers of finished and of all files or images; may raise to end the work.
ProgressCallback = Callable[[int, int], None]
_Keep = Callable[[int, Pixels], None]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def no_progress(done: int, files: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How image files are decoded and kept."""

    cache: Path | None = None  # directory of decoded images, keyed by content; None: no cache
    limit_bytes: int | None = None  # above this, over all splits, images are streamed from disk; None: never
    on_progress: ProgressCallback = no_progress


IN_MEMORY = DecodeOptions()


def decode_files(
    paths: Sequence[Path],
    geometry: Geometry,
    cache: Path | None = None,
    *,
    streamed: bool = False,
    digests: Sequence[bytes] | None = None,
    on_progress: ProgressCallback = no_progress,
) -> tuple[Images, Undecodable]:
    """Decode image files with the server's own code.

    Args:
        paths: the files.
        geometry: the size and channels of the decoded images.
        cache: directory of decoded images; None: decode into memory every time.
        streamed: the images exceed the memory limit and stay on disk.
        digests: `content_digests` of the files; None: the files are read for them.
        on_progress: called every 64 files; if it raises, decoding ends and the cache keeps nothing.

    Returns: (N, H, W, C) uint8, zeros for undecodable files: a memory map if cached, on disk if streamed. And
        the reason for each undecodable file, by index.

    Raises:
        DataError: images must be streamed, but there is no cache or too little disk space.
    """
    shape = (len(paths), *geometry.shape)
    needed_bytes = int(np.prod(shape))
    if streamed and cache is None:
        raise DataError(
            f"{len(paths)} decoded images need {needed_bytes / GIB:.2f} GiB, more than the memory limit "
            "(data.memory_limit_gib): name a directory to stream them from with --cache"
        )
    if cache is None or not paths:
        return _in_memory(paths, geometry, on_progress)
    stem = cache / f"decoded-{_digest(digests or content_digests(paths), geometry)[:32]}"
    found = _open(stem, shape, streamed=streamed)
    if found is not None:
        return found
    with exclusive_lock(cache / ".lock"):
        for left in cache.glob(f"{_UNFINISHED}*"):  # by a killed process
            left.unlink()
        # Another process may have decoded them in the meantime.
        found = _open(stem, shape, streamed=streamed)
        if found is not None:
            return found
        free_bytes = shutil.disk_usage(cache).free
        if free_bytes < needed_bytes:
            if not streamed:
                return _in_memory(paths, geometry, on_progress)
            raise _full(cache, needed_bytes, free_bytes)
        _write(stem, paths, geometry, on_progress)
    found = _open(stem, shape, streamed=streamed)
    if found is None:
        raise DataError(f"the decoded images in {stem}.npy cannot be read after writing: check the disk")
    return found


def content_digests(paths: Sequence[Path]) -> list[bytes]:
    """SHA-256 of the bytes of each file; for a file that cannot be read, of the error."""
    return list(_in_threads(_content_digest, paths))


def _in_memory(
    paths: Sequence[Path], geometry: Geometry, on_progress: ProgressCallback
) -> tuple[Pixels, Undecodable]:
    images = np.zeros((len(paths), *geometry.shape), np.uint8)
    return images, _decode(paths, geometry, images.__setitem__, on_progress)


def _write(stem: Path, paths: Sequence[Path], geometry: Geometry, on_progress: ProgressCallback) -> None:
    """Write to a temporary file, sync, rename, so that a killed process leaves no incomplete cache."""
    unfinished = stem.with_name(f"{_UNFINISHED}{stem.name}.npy")
    shape = (len(paths), *geometry.shape)
    size = int(np.prod(geometry.shape))
    try:
        with unfinished.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            offset = file.tell()
            file.truncate(offset + len(paths) * size)  # zeros until overwritten

            def keep(index: int, image: Pixels) -> None:
                # pwrite reports a full disk as an error; a memory map would kill the process with SIGBUS.
                _write_whole(file.fileno(), np.ascontiguousarray(image).data, offset + index * size)

            undecodable = _decode(paths, geometry, keep, on_progress)
            os.fsync(file.fileno())
        replace_file(stem.with_suffix(".json"), json.dumps(undecodable).encode())
        unfinished.replace(stem.with_suffix(".npy"))
        sync(stem.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free_bytes = shutil.disk_usage(stem.parent).free
            raise _full(stem.parent, len(paths) * size, free_bytes) from error
        raise DataError(f"decoded images cannot be written to {stem.parent}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_whole(descriptor: int, content: memoryview, offset: int) -> None:
    if os.pwrite(descriptor, content, offset) != content.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full(cache: Path, needed_bytes: int, free_bytes: int) -> DataError:
    return DataError(
        f"the decoded images need {needed_bytes / GIB:.2f} GiB, but only {free_bytes / GIB:.2f} GiB are "
        f"free at {cache}: make room, choose another --run-dir or --cache, or raise data.memory_limit_gib"
    )


def _decode(
    paths: Sequence[Path], geometry: Geometry, keep: _Keep, on_progress: ProgressCallback
) -> Undecodable:
    def decode(index: int) -> str | None:
        try:
            pixels = decode_image(paths[index].read_bytes(), _LIMITS)
            image = apply_geometry(pixels, geometry)
        except (ImageError, OSError) as error:
            return str(error)
        keep(index, image)
        return None

    undecodable = {}
    # closing: cancels pending files if on_progress raises.
    with closing(_in_threads(decode, range(len(paths)))) as reasons:
        for index, why in enumerate(reasons):
            if why is not None:
                undecodable[index] = why
            if (index + 1) % _PROGRESS_INTERVAL == 0 or index + 1 == len(paths):
                on_progress(index + 1, len(paths))
    return undecodable


def _in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Generator[_Result, None, None]:
    # Decoding and hashing release the GIL, so threads are enough.
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), _MAX_PENDING):
            yield from pool.map(function, items[start : start + _MAX_PENDING])


def _digest(digests: Sequence[bytes], geometry: Geometry) -> str:
    sha = hashlib.sha256(f"{_decoder_version()} {geometry.model_dump_json()}".encode())
    for digest in digests:
        sha.update(digest)
    return sha.hexdigest()


def _decoder_version() -> str:
    """Identify the code and the packages that decode and resize, so that no cache outlives them.

    A server decodes with today's code: images that an older one decoded would prove another network input.
    """
    code = hashlib.sha256("".join(map(inspect.getsource, _DECODER)).encode()).hexdigest()
    return " ".join([code, *map(_package_version, _DECODER_PACKAGES)])


def _package_version(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:  # cykooz-resizer on some platforms
        return f"no {name}"


def _content_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return hashlib.sha256(str(error).encode()).digest()


def _open(stem: Path, shape: tuple[int, ...], *, streamed: bool) -> tuple[Images, Undecodable] | None:
    """Open cached images; None if they are missing or damaged, so that they are decoded again."""
    path = stem.with_suffix(".npy")
    with suppress(OSError, ValueError, EOFError):
        reasons = json.loads(stem.with_suffix(".json").read_bytes())
        # Copy-on-write for use as an array: torch warns of read-only arrays. The kernel refuses such a
        # mapping if it is larger than memory, so streamed images are opened read-only.
        images: np.memmap = np.load(path, mmap_mode="r" if streamed else "c", allow_pickle=False)
        if images.shape == shape and images.dtype == np.uint8:
            undecodable = {int(index): str(why) for index, why in reasons.items()}
            return (DiskImages(path, images.offset, shape) if streamed else images), undecodable
    return None
