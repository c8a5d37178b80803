"""Image files decoded once: in model geometry on disk, by the content of the files, mapped into memory."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from serving.bundle import Geometry, ImageLimits, apply_geometry, decode_image
from serving.bundle.images import Pixels
from serving.errors import ImageError
from training.files import replace_file

_LIMITS = ImageLimits()
_VERSION = 1  # of decoding and geometry: pixels of an older one are not taken from the cache

Undecodable = dict[int, str]  # index of a file -> why


def decode_files(
    paths: Sequence[Path], geometry: Geometry, cache: Path | None = None
) -> tuple[Pixels, Undecodable]:
    """Decode files by the code that the server runs.

    Args:
        paths: of the files.
        geometry: into which each image is brought.
        cache: folder of decoded images; none: decoded anew, and whole in memory.

    Returns: (N, H, W, C) uint8, zeros where a file cannot be decoded; from the cache they are mapped, so that
        only what is used takes memory. And why which file cannot be decoded.
    """
    shape = (len(paths), *geometry.shape)
    if cache is None or not paths:
        images = np.zeros(shape, np.uint8)
        return images, _fill(images, paths, geometry)
    stem = cache / f"decoded-{_digest(paths, geometry)[:32]}"
    found = _read(stem, shape)
    if found is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".decoding-") as folder:
        unfinished = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        undecodable = _fill(images, paths, geometry)
        images.flush()
        replace_file(stem.with_suffix(".json"), json.dumps(undecodable).encode())
        unfinished.replace(stem.with_suffix(".npy"))
    found = _read(stem, shape)
    return (images, undecodable) if found is None else found


def _fill(images: Pixels, paths: Sequence[Path], geometry: Geometry) -> Undecodable:
    def decode(index: int) -> str | None:
        try:
            pixels = decode_image(paths[index].read_bytes(), _LIMITS)
            images[index] = apply_geometry(pixels, geometry)
        except (ImageError, OSError) as error:
            return str(error)
        return None

    # Pillow lets go of the interpreter lock while it decodes and resizes, so threads are enough.
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(decode, range(len(paths))))
    return {index: why for index, why in enumerate(reasons) if why is not None}


def _digest(paths: Sequence[Path], geometry: Geometry) -> str:
    sha = hashlib.sha256(f"{_VERSION} {geometry.model_dump_json()}".encode())
    with ThreadPoolExecutor() as pool:
        for digest in pool.map(_content_digest, paths):
            sha.update(digest)
    return sha.hexdigest()


def _content_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return hashlib.sha256(str(error).encode()).digest()


def _read(stem: Path, shape: tuple[int, ...]) -> tuple[Pixels, Undecodable] | None:
    """None where there is nothing, or where what is there is broken: then it is made afresh."""
    with suppress(OSError, ValueError, EOFError):
        reasons = json.loads(stem.with_suffix(".json").read_bytes())
        # Copy on write: torch warns of arrays that nobody may write to.
        images = np.load(stem.with_suffix(".npy"), mmap_mode="c", allow_pickle=False)
        if images.shape == shape and images.dtype == np.uint8:
            return images, {int(index): str(why) for index, why in reasons.items()}
    return None
