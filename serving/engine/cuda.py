"""What ONNX Runtime needs for CUDA: loads its libraries, names what is missing or too old, silences its log.

ONNX Runtime itself would fall back to the CPU. Knows no network and no device.
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
# The provider is not linked against it, but opens it when it needs it.
_CUDNN = "libcudnn.so.9"
_DRIVER = "libcuda.so.1"  # no package brings it

_ORT_WARNINGS, _ORT_FATAL = 2, 4  # ONNX Runtime's default severity, and its highest

# Of the ELF format, 64 bits, little endian (man 5 elf).
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5


@cache  # the second look would find the same, and stdout belongs to others by then
def why_unusable() -> str:
    """Load CUDA and cuDNN from packages or the system; the reason where one is missing, or nothing."""
    if not _PROVIDER.exists():
        return ""  # a build without CUDA, or with all of it inside
    folders = nvidia_folders()
    with redirect_stdout(io.StringIO()):  # it prints what it misses, but stdout is for results
        preload(folders)
    needed = dict.fromkeys((*needed_libraries(_PROVIDER), _CUDNN))
    return in_words(missing_libraries(list(needed), folders))


def nvidia_folders() -> list[Path]:
    """Every folder of the package `nvidia` on Python's path, ONNX Runtime's own neighbour first.

    The packages of CUDA share that name, and may be installed in several places.
    """
    spec = find_spec("nvidia")
    found = map(Path, spec.submodule_search_locations or ()) if spec else ()
    return list(dict.fromkeys((_ONNX_RUNTIME.parent / "nvidia", *found)))


def preload(folders: Sequence[Path]) -> None:
    """Load CUDA and cuDNN from the folders of the package `nvidia`, then what is missing from the system.

    In this order, since torch in the same process refuses a system's cuDNN that is older than its package.
    """
    cuda = (onnxruntime.cuda_version or "0").partition(".")[0]
    for folder in folders:
        for name, other in ((f"cu{cuda}", "cudnn"), ("cudnn", "cuda")):
            if (libraries := folder / name / "lib").is_dir():
                onnxruntime.preload_dlls(directory=str(libraries), **{other: False})
    onnxruntime.preload_dlls()


def why_too_old(driver_version: int) -> str:
    """Why ONNX Runtime cannot use a driver, or nothing.

    Args:
        driver_version: the latest CUDA that it supports, 1000 * major + 10 * minor.
    """
    needed = (onnxruntime.cuda_version or "0").partition(".")[0]
    if driver_version // 1000 >= int(needed):  # CUDA's minor version compatibility
        return ""
    found = f"{driver_version // 1000}.{driver_version % 1000 // 10}"
    version = onnxruntime.__version__
    return (
        f"the NVIDIA driver supports CUDA {found}, ONNX Runtime {version} needs CUDA {needed}: "
        "update the driver"
    )


def in_words(missing: Sequence[str]) -> str:
    """What to do about the missing libraries; nothing where there are none."""
    parts = []
    if packaged := [name for name in missing if name != _DRIVER]:
        cuda = onnxruntime.cuda_version.partition(".")[0]
        parts.append(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {', '.join(packaged)}: "
            f"pip install 'lenserve[cuda]', or put CUDA {cuda} and cuDNN 9 on the linker's path"
        )
    if _DRIVER in missing:
        parts.append(f"there is no NVIDIA driver ({_DRIVER})")
    return "; ".join(parts)


def missing_libraries(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Load libraries for good, and return the names of those that cannot be loaded.

    The provider itself must not be loaded for this: it would take its host's address before there is one.

    Args:
        names: such as libcudart.so.13.
        folders: of the package `nvidia`, whose layout has changed between versions of CUDA.
    """
    return [name for name in names if not _loads(name, folders)]


def needed_libraries(library: Path) -> list[str]:
    """The names of the libraries that an ELF file is linked against."""
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
    # By its name alone, the linker finds what is loaded already, and what is on its path.
    packaged = (file for folder in folders for file in folder.glob(f"*/lib/{name}"))
    for file in (name, *map(str, packaged)):
        try:
            ctypes.CDLL(file)
        except OSError:
            continue
        return True
    return False


class _Quiet:
    """Silences ONNX Runtime's default logger. A class because the logger is one for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Open a CUDA session inside, or run a batch size for the first time.

        The logger then warns of a plugin that is not needed, and prints an error for every kernel that it
        tries in vain: 150 lines for one FP16 network. What fails in the end is an exception.
        """
        self._ask(1)
        try:
            yield
        finally:
            self._ask(-1)

    def _ask(self, more: int) -> None:
        with self._lock:
            self._asked += more
            onnxruntime.set_default_logger_severity(_ORT_FATAL if self._asked else _ORT_WARNINGS)


quiet_logger = _Quiet()


class FirstRuns:
    """Silences the default logger for the first run of every batch size of one session."""

    def __init__(self) -> None:
        self._met: set[int] = set()

    def __call__(self, size: int) -> AbstractContextManager[None]:
        """Run a batch of this size inside."""
        if size in self._met:
            return nullcontext()
        self._met.add(size)
        return quiet_logger()
