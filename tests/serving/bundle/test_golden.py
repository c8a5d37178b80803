"""Golden examples: read as written, checked against the manifest, never unpickled."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.bundle import GOLDEN_FILE, Golden, Manifest, read_golden, write_golden
from serving.errors import BundleError
from tests.serving.bundle.publishing import Publish


@pytest.fixture
def manifest(publish: Publish) -> Manifest:
    """Manifest of a version with golden images (G, 6, 5, 3) and 3 labels."""
    return publish().manifest


def write_arrays(folder: Path, **arrays: np.typing.NDArray[np.generic]) -> None:
    """Write golden.npz with any arrays."""
    np.savez(folder / GOLDEN_FILE, allow_pickle=True, **arrays)


def refusal(folder: Path, manifest: Manifest) -> str:
    """The message of the error, which names golden.npz."""
    with pytest.raises(BundleError) as refused:
        read_golden(folder, manifest)
    assert str(folder / GOLDEN_FILE) in str(refused.value)
    return str(refused.value)


def test_round_trip(tmp_path: Path, golden: Golden, manifest: Manifest) -> None:
    """Images and probabilities are read bit for bit."""
    write_golden(golden, tmp_path)
    found = read_golden(tmp_path, manifest)
    np.testing.assert_array_equal(found.images, golden.images)
    np.testing.assert_array_equal(found.probabilities, golden.probabilities)
    assert found.largest_difference(golden.probabilities) == 0


@pytest.mark.parametrize(
    ("images", "probabilities"),
    [
        ((4, 6, 5, 3), (3, 3)),
        ((4, 6, 5, 3), (4, 2)),
        ((4, 6, 5, 3), (4, 3, 1)),
        ((4, 5, 6, 3), (4, 3)),
        ((4, 6, 5, 1), (4, 3)),
        ((6, 5, 3), (6, 3)),
        ((0, 6, 5, 3), (0, 3)),
        ((33, 6, 5, 3), (33, 3)),
        ((), ()),
    ],
)
def test_wrong_shapes_are_refused(
    images: tuple[int, ...], probabilities: tuple[int, ...], tmp_path: Path, manifest: Manifest
) -> None:
    """1..32 images of the manifest's geometry, one probability per label; the error has both shapes."""
    write_arrays(
        tmp_path, images=np.zeros(images, np.uint8), probabilities=np.zeros(probabilities, np.float32)
    )
    message = refusal(tmp_path, manifest)
    assert str(images) in message
    assert "6, 5, 3" in message


@pytest.mark.parametrize(
    ("images", "probabilities"),
    [("float32", "float32"), ("uint8", "float64"), ("int8", "float16"), ("S1", "U1")],
)
def test_wrong_types_are_refused(images: str, probabilities: str, tmp_path: Path, manifest: Manifest) -> None:
    """Images are uint8, probabilities float32; the error names the dtypes found."""
    write_arrays(
        tmp_path, images=np.zeros((4, 6, 5, 3), images), probabilities=np.zeros((4, 3), probabilities)
    )
    assert str(np.dtype(images)) in refusal(tmp_path, manifest)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.bait,)


def test_nothing_is_ever_unpickled(tmp_path: Path, manifest: Manifest) -> None:
    """An array of objects is rejected before its pickle is read."""
    bait = tmp_path / "bait"
    trap = np.full((4, 6, 5, 3), Trap(bait), object)
    write_arrays(tmp_path, images=trap, probabilities=np.zeros((4, 3), np.float32))
    refusal(tmp_path, manifest)
    assert not bait.exists()
    np.load(tmp_path / GOLDEN_FILE, allow_pickle=True)["images"]
    assert bait.exists()  # the trap was a real one


def test_a_bare_pickle_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    """Numpy would read a pickle instead of an archive if it were allowed to."""
    (tmp_path / GOLDEN_FILE).write_bytes(b"\x80\x04]\x94.")
    refusal(tmp_path, manifest)


def test_a_bare_array_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    """An .npy file is not an archive of two arrays."""
    with (tmp_path / GOLDEN_FILE).open("wb") as file:
        np.save(file, np.zeros((4, 6, 5, 3), np.uint8))
    refusal(tmp_path, manifest)


def test_a_missing_array_is_refused_by_name(tmp_path: Path, manifest: Manifest) -> None:
    """Images without their probabilities prove nothing."""
    write_arrays(tmp_path, images=np.zeros((4, 6, 5, 3), np.uint8))
    assert "probabilities" in refusal(tmp_path, manifest)


def test_a_message_of_several_lines_is_one_line(tmp_path: Path, manifest: Manifest) -> None:
    """Numpy refuses a header above 10,000 bytes, and names its options in further lines."""
    with zipfile.ZipFile(tmp_path / GOLDEN_FILE, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x02\x00" + (20_000).to_bytes(4, "little") + b" " * 20_000)
    with pytest.raises(BundleError, match="Header info length") as caught:
        read_golden(tmp_path, manifest)
    assert "\n" not in str(caught.value)


def test_members_that_are_not_arrays_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    """Numpy returns the bytes of a member that is not an .npy file; they are rejected."""
    with zipfile.ZipFile(tmp_path / GOLDEN_FILE, "w") as archive:
        archive.writestr("images", b"pixels")
        archive.writestr("probabilities", b"numbers")
    refusal(tmp_path, manifest)


def test_an_array_that_inflates_is_refused_before_it_is_decompressed(
    tmp_path: Path, manifest: Manifest
) -> None:
    """100 MB of zeros are 100 kB of a file: only their size in the archive is read."""
    with zipfile.ZipFile(tmp_path / GOLDEN_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(10**8))
        archive.writestr("probabilities.npy", b"")
    assert "an array has 100000000 bytes, limit is 68416" in refusal(tmp_path, manifest)


def test_a_missing_file_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    """Also a folder of that name."""
    refusal(tmp_path, manifest)
    (tmp_path / GOLDEN_FILE).mkdir()
    refusal(tmp_path, manifest)


def test_every_truncation_is_refused(tmp_path: Path, golden: Golden, manifest: Manifest) -> None:
    """From an empty file to one that lacks a byte."""
    write_golden(golden, tmp_path)
    whole = (tmp_path / GOLDEN_FILE).read_bytes()
    for length in range(len(whole)):
        (tmp_path / GOLDEN_FILE).write_bytes(whole[:length])
        refusal(tmp_path, manifest)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(
    position: float, byte: int, tmp_path: Path, golden: Golden, manifest: Manifest
) -> None:
    """Broken archives, deflate streams and headers are BundleErrors."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=golden.images, probabilities=golden.probabilities)
    spoiled = bytearray(buffer.getvalue())
    spoiled[int(position * len(spoiled))] = byte
    (tmp_path / GOLDEN_FILE).write_bytes(spoiled)
    try:
        found = read_golden(tmp_path, manifest)
    except BundleError:
        return
    assert found.images.shape == golden.images.shape


def test_largest_difference_is_the_largest(golden: Golden) -> None:
    """One wrong probability counts, in either direction."""
    for sign in (1, -1):
        other = golden.probabilities.copy()
        other[2, 1] += sign * 0.25
        assert golden.largest_difference(other) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_differs_infinitely(value: float, golden: Golden) -> None:
    """NaN proves nothing."""
    other = golden.probabilities.copy()
    other[0, 0] = value
    assert golden.largest_difference(other) == float("inf")
