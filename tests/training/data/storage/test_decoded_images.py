"""Decoded images: the cache returns what decoding returns, and is invalidated with the files' content."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Geometry
from training.data.storage.decoded_images import decode_files
from training.data.storage.disk_images import DiskImages
from training.errors import DataError

GEOMETRY = Geometry(height=8, width=9, channels=3)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three noise images, and a text file among them."""
    random = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.png", "b.png", "broken.png", "c.png")]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    paths[2].write_text("no picture")
    return paths


def test_the_cache_gives_what_decoding_gives(files: list[Path], tmp_path: Path) -> None:
    """Decoded, cached and read again: the same pixels and errors."""
    plain, reasons = decode_files(files, GEOMETRY)
    assert plain.shape == (4, 8, 9, 3)
    assert list(reasons) == [2]
    assert "unknown image format" in reasons[2]
    assert not plain[2].any()
    for _ in range(2):
        cached, complaints = decode_files(files, GEOMETRY, tmp_path / "cache")
        np.testing.assert_array_equal(cached, plain)
        assert complaints == reasons
        assert isinstance(cached, np.memmap)
    kept = sorted(path.suffix or path.name for path in (tmp_path / "cache").iterdir())
    assert kept == [".json", ".lock", ".npy"], "nothing unfinished"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("change", ["content", "geometry", "order", "damage"])
def test_another_content_geometry_or_order_is_decoded_anew(
    change: str, *, streamed: bool, files: list[Path], tmp_path: Path
) -> None:
    """Stale or damaged cache entries are not used."""
    cache, geometry = tmp_path / "cache", GEOMETRY
    decode_files(files, geometry, cache, streamed=streamed)
    if change == "content":
        files[0].write_bytes(files[1].read_bytes())
    if change == "geometry":
        geometry = Geometry(height=8, width=9, channels=3, fit="pad")
    if change == "order":
        files.reverse()
    if change == "damage":
        (written,) = cache.glob("*.npy")
        written.write_bytes(written.read_bytes()[:100])
    images, reasons = decode_files(files, geometry, cache, streamed=streamed)
    expected, complaints = decode_files(files, geometry)
    np.testing.assert_array_equal(images[:], expected)
    assert reasons == complaints


def test_writing_to_mapped_images_does_not_change_the_cache(files: list[Path], tmp_path: Path) -> None:
    """Torch needs writable arrays; writing does not change the file."""
    for _ in range(2):
        images, _reasons = decode_files(files, GEOMETRY, tmp_path / "cache")
        assert isinstance(images, np.ndarray)
        before = images[0].copy()
        images[0] = 7
    np.testing.assert_array_equal(before, decode_files(files, GEOMETRY)[0][0])


def test_streamed_images_are_read_and_not_mapped(files: list[Path], tmp_path: Path) -> None:
    """Streamed images have the same pixels and errors as those in memory, from the same cache."""
    plain, reasons = decode_files(files, GEOMETRY)
    for _ in range(2):
        stored, complaints = decode_files(files, GEOMETRY, tmp_path, streamed=True)
        assert isinstance(stored, DiskImages)
        np.testing.assert_array_equal(stored[:], plain)
        assert complaints == reasons
    mapped, _ = decode_files(files, GEOMETRY, tmp_path)
    np.testing.assert_array_equal(mapped, plain)
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_too_little_space_is_an_error_with_both_numbers(files: list[Path], tmp_path: Path) -> None:
    """Streaming without a cache, or to a disk with too little space, fails at once."""
    with pytest.raises(DataError, match=r"4 decoded images need 0\.00 GiB, more than the memory limit"):
        decode_files(files, GEOMETRY, streamed=True)
    large = Geometry(height=4096, width=4096, channels=3)
    free_bytes = shutil.disk_usage(tmp_path).free
    paths = files[:1] * (2 + free_bytes // (4096 * 4096 * 3))
    cache = tmp_path / "cache"
    with pytest.raises(
        DataError, match=rf"need \d+\.\d\d GiB, but only \d+\.\d\d GiB are free at {cache}: make room"
    ):
        decode_files(paths, large, cache, streamed=True)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_full_disk_is_not_reported_as_an_undecodable_file(files: list[Path], tmp_path: Path) -> None:
    """A failed write ends decoding with its reason, and leaves no incomplete cache."""
    program = f"""
import resource, signal
from pathlib import Path
from serving.bundle import Geometry
from training.data.storage.decoded_images import decode_files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
decode_files([Path({str(files[0])!r})] * 9, Geometry(height=8, width=9, channels=3), Path({str(tmp_path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "DataError: decoded images cannot be written to" in ended.stderr
    assert "File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir() if path not in files] == [".lock"]


def test_decoding_that_is_killed_leaves_nothing_that_looks_whole(files: list[Path], tmp_path: Path) -> None:
    """After a kill the next process removes the temporary file and decodes all files."""
    cache = tmp_path / "cache"
    paths = files[:2] * 20_000
    program = f"""
from pathlib import Path
from serving.bundle import Geometry
from training.data.storage.decoded_images import decode_files
paths = [Path({str(files[0])!r}), Path({str(files[1])!r})] * 20_000
decode_files(paths, Geometry(height=8, width=9, channels=3), Path({str(cache)!r}), streamed=True)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while process.poll() is None and not list(cache.glob(".decoding-*")):
            pass
        process.kill()
    assert process.returncode == -9
    assert not list(cache.glob("decoded-*.npy"))
    assert len(list(cache.glob(".decoding-*"))) == 1
    stored, _ = decode_files(files, GEOMETRY, cache, streamed=True)
    np.testing.assert_array_equal(stored[:], decode_files(files, GEOMETRY)[0])
    assert not list(cache.glob(".decoding-*"))
    again, _ = decode_files(paths[:100], GEOMETRY, cache, streamed=True)
    np.testing.assert_array_equal(again[98:], stored[:2])


def test_progress_is_reported_and_may_end_decoding(files: list[Path], tmp_path: Path) -> None:
    """The callback is called four times for 200 files; an exception from it ends decoding cleanly."""
    paths, told = files[:2] * 100, []
    decode_files(paths, GEOMETRY, on_progress=lambda *progress: told.append(progress))
    assert told == [(64, 200), (128, 200), (192, 200), (200, 200)]

    def leave(_done: int, _files: int) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        decode_files(paths, GEOMETRY, tmp_path / "cache", on_progress=leave)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_concurrent_processes_decode_once(files: list[Path], tmp_path: Path) -> None:
    """Of several processes that decode the same files, one writes the cache and all read it."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: decode_files(files, GEOMETRY, tmp_path, streamed=True), range(4)))
    (written,) = tmp_path.glob("decoded-*.npy")
    changed = written.stat().st_ino
    assert all(np.array_equal(stored[:], found[0][0][:]) for stored, _ in found)
    decode_files(files, GEOMETRY, tmp_path, streamed=True)
    assert written.stat().st_ino == changed
