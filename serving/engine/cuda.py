"""Prepares ONNX Runtime for CUDA: loads libraries, reports missing or outdated ones, silences the log.

Without this, ONNX Runtime would fall back to the CPU. Independent of networks and devices.
"""

import ctypes
import io
import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from struct import unpack_from

import onnxruntime

_ONNX_RUNTIME = Path(onnxruntime.__file__).parent
_PROVIDER = _ONNX_RUNTIME / "capi" / "libonnxruntime_providers_cuda.so"
# The provider is not linked against it, but loads it at first use.
_CUDNN = "libcudnn.so.9"
_DRIVER = "libcuda.so.1"  # part of the driver, not of a package

_ORT_WARNINGS, _ORT_FATAL = 2, 4  # ONNX Runtime's default severity, and its highest

# ELF, 64 bits, little endian (man 5 elf).
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5


@cache  # the result does not change, and stdout must not be redirected once the server runs
def why_unusable() -> str:
    """Load CUDA and cuDNN from packages or the system; return why that failed, or an empty string."""
    if not _PROVIDER.exists():
        return ""  # a build without CUDA, or with CUDA linked in
    folders = nvidia_folders()
    with redirect_stdout(io.StringIO()):  # it prints missing libraries, but stdout is for results
        preload(folders)
    needed = dict.fromkeys((*needed_libraries(_PROVIDER), _CUDNN))
    return describe_missing(missing_libraries(list(needed), folders))


def nvidia_folders() -> list[Path]:
    """Every folder of the package `nvidia` on Python's path; the one next to ONNX Runtime comes first.

    All CUDA packages share that name, and may be installed in several places.
    """
    spec = find_spec("nvidia")
    found = map(Path, spec.submodule_search_locations or ()) if spec else ()
    return list(dict.fromkeys((_ONNX_RUNTIME.parent / "nvidia", *found)))


def preload(folders: Sequence[Path]) -> None:
    """Load CUDA and cuDNN from the folders of the package `nvidia`, then the rest from the system.

    In this order, because torch in the same process rejects a system cuDNN that is older than its package.
    """
    cuda = (onnxruntime.cuda_version or "0").partition(".")[0]
    for folder in folders:
        for name, other in ((f"cu{cuda}", "cudnn"), ("cudnn", "cuda")):
            if (libraries := folder / name / "lib").is_dir():
                onnxruntime.preload_dlls(directory=str(libraries), **{other: False})
    onnxruntime.preload_dlls()


def why_too_old(driver_version: int) -> str:
    """Return why the driver is too old for ONNX Runtime; empty if it is not.

    Args:
        driver_version: the latest CUDA that the driver supports, 1000 * major + 10 * minor.
    """
    needed = (onnxruntime.cuda_version or "0").partition(".")[0]
    if driver_version // 1000 >= int(needed):  # minor versions of CUDA are compatible
        return ""
    found = f"{driver_version // 1000}.{driver_version % 1000 // 10}"
    version = onnxruntime.__version__
    return (
        f"the NVIDIA driver supports CUDA {found}, ONNX Runtime {version} needs CUDA {needed}: "
        "update the driver"
    )


def describe_missing(missing: Sequence[str]) -> str:
    """Return which libraries are missing and what to do; empty if none is missing."""
    parts = []
    if packaged := [name for name in missing if name != _DRIVER]:
        cuda = onnxruntime.cuda_version.partition(".")[0]
        parts.append(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {', '.join(packaged)}: "
            f"in a checkout, pip install '.[cuda]', or put CUDA {cuda} and cuDNN 9 on the linker's path"
        )
    if _DRIVER in missing:
        parts.append(f"no NVIDIA driver was found ({_DRIVER})")
    return "; ".join(parts)


def missing_libraries(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Load libraries into this process; return the names of those that cannot be loaded.

    The provider must not be loaded here: it would read its host's address too early.

    Args:
        names: such as libcudart.so.13.
        folders: folders of the package `nvidia`, whose layout depends on the version of CUDA.
    """
    return [name for name in names if not _loads(name, folders)]


def needed_libraries(library: Path) -> list[str]:
    """Return the names of the libraries that an ELF file is linked against."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as elf:
        (table,) = unpack_from("<Q", elf, 32)
        size, count = unpack_from("<HH", elf, 54)
        # (type, flags, offset, virtual address, physical address, bytes in the file) each
        segments = [unpack_from("<IIQQQQ", elf, table + size * number) for number in range(count)]
        start, length = next((part[2], part[5]) for part in segments if part[0] == _PT_DYNAMIC)
        entries = [unpack_from("<QQ", elf, at) for at in range(start, start + length, 16)]
        address = next(value for tag, value in entries if tag == _DT_STRTAB)
        strings = next(
            address - part[3] + part[2]
            for part in segments
            if part[0] == _PT_LOAD and part[3] <= address < part[3] + part[5]
        )
        starts = [strings + value for tag, value in entries if tag == _DT_NEEDED]
        return [elf[at : elf.find(b"\0", at)].decode() for at in starts]


def _loads(name: str, folders: Sequence[Path]) -> bool:
    # Given only a name, the linker finds libraries that are already loaded or on its path.
    packaged = (file for folder in folders for file in folder.glob(f"*/lib/{name}"))
    for file in (name, *map(str, packaged)):
        try:
            ctypes.CDLL(file)
        except OSError:
            continue
        return True
    return False


class _QuietLogger:
    """Silences ONNX Runtime's default logger, which all threads share, while any thread needs that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Silence the logger while a CUDA session is opened or a batch size runs for the first time.

        It would warn of an unneeded plugin, and print an error for each kernel that it tries without success:
        150 lines for one FP16 network. Real failures raise exceptions.
        """
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._requests += more
            onnxruntime.set_default_logger_severity(_ORT_FATAL if self._requests else _ORT_WARNINGS)


quiet_logger = _QuietLogger()


class QuietFirstRuns:
    """Silences the default logger for the first run of each batch size in a session."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, size: int) -> AbstractContextManager[None]:
        """Return the context for running a batch of this size."""
        if size in self._seen:
            return nullcontext()
        self._seen.add(size)
        return quiet_logger()
