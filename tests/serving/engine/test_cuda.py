"""CUDA's libraries: found in packages or on the linker's path, and named if missing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from numpy._core import _multiarray_umath  # type: ignore[attr-defined]  # private

from serving.engine import cuda
from serving.engine.devices import find_cuda

PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
SMALL = PROVIDER.with_name("libonnxruntime_providers_shared.so")

needs_provider = pytest.mark.skipif(not PROVIDER.exists(), reason="this ONNX Runtime is built without CUDA")
needs_elf = pytest.mark.skipif(not SMALL.exists(), reason="this ONNX Runtime is not a build for Linux")


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str], Path]:
    """Put a real library under a name into a folder of packages, as pip does."""

    def put(folder: str, name: str) -> Path:
        file = tmp_path / "nvidia" / folder / "lib" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SMALL, file)
        return file

    return put


def test_the_libraries_that_a_library_needs_are_read() -> None:
    """An extension of numpy needs at least the C library."""
    file = Path(str(_multiarray_umath.__file__))
    if file.suffix != ".so" or file.read_bytes()[:5] != b"\x7fELF\x02":
        pytest.skip("no ELF file of 64 bits")
    assert any(name.startswith("libc.") for name in cuda.needed_libraries(file))


@needs_provider
def test_the_cuda_provider_needs_cuda() -> None:
    """Their names have the version of CUDA that it was built for."""
    names = cuda.needed_libraries(PROVIDER)
    major = onnxruntime.cuda_version.partition(".")[0]
    assert {f"libcudart.so.{major}", f"libcublasLt.so.{major}", "libcuda.so.1"} <= set(names)


@needs_elf
@pytest.mark.parametrize("folder", ["cu13", "cublas"])
def test_a_library_in_the_packages_is_found(
    install: Callable[[str, str], Path], tmp_path: Path, folder: str
) -> None:
    """In the layouts of CUDA 13 (nvidia/cu13) and CUDA 12 (nvidia/cublas)."""
    name = f"liblenserve-{folder}.so.1"
    assert cuda.missing_libraries([name], [tmp_path / "nvidia"]) == [name]
    install(folder, name)
    assert cuda.missing_libraries([name], [tmp_path / "absent", tmp_path / "nvidia"]) == []


def test_packages_come_before_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch rejects a system's cuDNN that is older than the package that it was built with."""
    for name in ("cu13", "cudnn"):
        (tmp_path / name / "lib").mkdir(parents=True)
    asked: list[str] = []

    def record(**options: object) -> None:
        asked.append(str(options.get("directory", "system")))

    monkeypatch.setattr(onnxruntime, "preload_dlls", record)
    cuda.preload([tmp_path])
    assert asked == [str(tmp_path / "cu13/lib"), str(tmp_path / "cudnn/lib"), "system"]


def test_packages_are_searched_on_all_of_pythons_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime only looks next to its package."""
    folders = [tmp_path / name / "nvidia" for name in ("first", "second")]
    for folder in folders:
        folder.mkdir(parents=True)
        monkeypatch.syspath_prepend(folder.parent)
    beside, *found = cuda.nvidia_folders()
    assert beside == Path(onnxruntime.__file__).parents[1] / "nvidia"
    assert set(folders) <= set(found)


@needs_elf
def test_a_library_on_the_linkers_path_is_found(tmp_path: Path) -> None:
    """Packages are not needed if the system has CUDA."""
    assert cuda.missing_libraries(["libc.so.6", "libabsent.so.13"], [tmp_path]) == ["libabsent.so.13"]


@needs_elf
def test_a_broken_library_is_missing(install: Callable[[str, str], Path], tmp_path: Path) -> None:
    """A file that the linker cannot load counts as missing."""
    install("cu13", "libbroken.so.13").write_bytes(b"no library")
    assert cuda.missing_libraries(["libbroken.so.13"], [tmp_path / "nvidia"]) == ["libbroken.so.13"]


def test_the_message_names_the_libraries_and_what_to_do() -> None:
    """It has both ways to install them."""
    words = cuda.describe_missing(["libcublasLt.so.13", "libcudnn.so.9"])
    assert "cannot load libcublasLt.so.13, libcudnn.so.9: in a checkout, pip install '.[cuda]'" in words
    assert "cuDNN 9 on the linker's path" in words
    assert not cuda.describe_missing([])


def test_a_missing_driver_is_not_installed_by_pip() -> None:
    """It comes with the system, so its message is separate from that of the libraries."""
    assert cuda.describe_missing(["libcuda.so.1"]) == "no NVIDIA driver was found (libcuda.so.1)"
    words = cuda.describe_missing(["libcudnn.so.9", "libcuda.so.1"])
    assert "cannot load libcudnn.so.9: in a checkout, pip install" in words
    assert words.endswith("; no NVIDIA driver was found (libcuda.so.1)")


@pytest.mark.parametrize(
    ("driver_version", "fits"), [(12080, False), (13000, True), (14010, True), (0, False)]
)
def test_a_driver_of_the_same_major_version_is_enough(
    monkeypatch: pytest.MonkeyPatch, driver_version: int, *, fits: bool
) -> None:
    """An older one is refused; the message has both versions."""
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    why = cuda.why_too_old(driver_version)
    assert (why == "") == fits
    if driver_version == 12080:
        assert why.startswith("the NVIDIA driver supports CUDA 12.8, ONNX Runtime ")
        assert why.endswith(" needs CUDA 13: update the driver")


@needs_provider
@pytest.mark.skipif(find_cuda()[0] > 0, reason="this machine has a CUDA device")
def test_missing_libraries_are_returned_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime prints to stdout, which is for results of commands."""
    assert "libcuda.so.1" in cuda.why_unusable.__wrapped__()
    assert capfd.readouterr().out == ""


def test_the_default_logger_is_quiet_until_the_last_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions load concurrently; warnings also come back after an error."""
    told: list[int] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", told.append)
    with cuda.quiet_logger():
        with pytest.raises(RuntimeError), cuda.quiet_logger():
            raise RuntimeError
        assert told == [4, 4, 4]
    assert told[3:] == [2]


def test_only_the_first_run_of_a_batch_size_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later runs try no kernels, so their warnings matter."""
    told: list[int] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", told.append)
    first_runs = cuda.QuietFirstRuns()
    for size in (1, 1, 8, 1, 8):
        with first_runs(size):
            pass
    assert told == [4, 2] * 2
