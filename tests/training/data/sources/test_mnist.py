"""MNIST's IDX files, intact and damaged."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Geometry
from training.data import load
from training.data.sources import mnist
from training.errors import DataError
from training.recipe import resolve

DIGITS = Geometry(height=28, width=28, channels=1, background=0)


def idx(array: np.ndarray) -> bytes:
    """Encode an array of unsigned bytes as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, *, packed: bool, per_class: int = 30) -> None:
    """Write a tiny MNIST of random images with balanced classes."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", per_class * 10), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            encoded = idx(content)
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(encoded) if packed else encoded)


@pytest.mark.parametrize("packed", [True, False])
def test_files_are_read_packed_or_plain(tmp_path: Path, *, packed: bool) -> None:
    """The published layout loads from a read-only directory, gzipped or not."""
    write_mnist(tmp_path, packed=packed)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "MNIST" / "raw").chmod(0o555)
    source = mnist.load(DIGITS, tmp_path, download=False)
    assert source.train.images.shape == (300, 28, 28, 1)
    assert source.test is not None
    assert len(source.test) == 20
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_files_are_named(tmp_path: Path) -> None:
    """The message names every missing file and what to do."""
    with pytest.raises(DataError) as caught:
        mnist.load(DIGITS, tmp_path, download=False)
    said = str(caught.value)
    assert "train-images-idx3-ubyte[.gz]" in said
    assert "t10k-labels-idx1-ubyte[.gz]" in said
    assert "--data-root" in said
    assert "data.download=true" in said


def test_download_with_files_in_place_contacts_nobody(tmp_path: Path) -> None:
    """data.download does not replace existing files."""
    write_mnist(tmp_path, packed=True)
    assert len(mnist.load(DIGITS, tmp_path, download=True).train) == 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\1\0", "not an IDX file of unsigned bytes with 1 axes: it begins '00000d01'"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + b"abc", "has 3 bytes of data, its shape [5] needs 5"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """A file of another type or length is an error with both numbers."""
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        mnist.read_idx(path, axes=1)
    assert said in str(caught.value)


def test_truncated_gzip_is_refused_by_name(tmp_path: Path) -> None:
    """A partial download is a DataError, not a traceback."""
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bytes(1000))[:-4])
    with pytest.raises(DataError, match=r"images\.gz cannot be read"):
        mnist.read_idx(path, axes=3)


@pytest.mark.data
def test_real_mnist_has_its_published_counts(data_root: Path) -> None:
    """60,000 and 10,000 images; the checks leave the test split complete."""
    recipe = resolve("lenet5-mnist")
    dataset, report = load(recipe.data, recipe.geometry, data_root)
    assert len(dataset.train) + len(dataset.validation) + sum(map(len, report.removed.values())) == 60_000
    assert len(dataset.test) == 10_000
    assert report.counts["test"]["1"] == 1_135


def test_fashion_mnist_is_found_in_both_layouts(tmp_path: Path) -> None:
    """Torchvision's directory and Debian's flat one hold the same four files."""
    write_mnist(tmp_path, packed=True)
    (tmp_path / "MNIST").rename(tmp_path / "FashionMNIST")
    nested = mnist.load_fashion(DIGITS, tmp_path, download=False)
    flat = mnist.load_fashion(DIGITS, tmp_path / "FashionMNIST" / "raw", download=False)
    assert np.array_equal(nested.train.images[:], flat.train.images[:])
    assert nested.labels[9] == "ankle boot"
    with pytest.raises(DataError, match=r"Fashion-MNIST is not in .*train-images-idx3-ubyte\[\.gz\]"):
        mnist.load_fashion(DIGITS, tmp_path / "nowhere", download=False)
