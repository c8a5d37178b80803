"""What ONNX Runtime needs for CUDA: loads its libraries, and names what is missing or too old.

ONNX Runtime itself would fall back to the CPU. Knows no network and no device.
"""

import ctypes
import io
import mmap
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from struct import unpack_from

import onnxruntime

_ONNX_RUNTIME = Path(onnxruntime.__file__).parent
_PROVIDER = _ONNX_RUNTIME / "capi" / "libonnxruntime_providers_cuda.so"
# The provider is not linked against it, but opens it when it needs it.
_CUDNN = "libcudnn.so.9"

# Of the ELF format, 64 bits, little endian (man 5 elf).
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5


@cache  # the second look would find the same, and stdout belongs to others by then
def why_unusable() -> str:
    """Load CUDA and cuDNN from packages or the system; the reason where one is missing, or nothing."""
    if not _PROVIDER.exists():
        return ""  # a build without CUDA, or with all of it inside
    with redirect_stdout(io.StringIO()):  # it prints what it misses, but stdout is for results
        onnxruntime.preload_dlls()
    needed = dict.fromkeys((*needed_libraries(_PROVIDER), _CUDNN))
    return in_words(missing_libraries(list(needed), _ONNX_RUNTIME.parent))


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
    """One sentence on the missing libraries; nothing where there are none."""
    if not missing:
        return ""
    cuda = onnxruntime.cuda_version.partition(".")[0]
    return (
        f"ONNX Runtime {onnxruntime.__version__} cannot load {', '.join(missing)}: "
        f"pip install 'lenserve[cuda]', or put CUDA {cuda} and cuDNN 9 on the linker's path"
    )


def missing_libraries(names: Sequence[str], packages: Path) -> list[str]:
    """Load libraries for good, and return the names of those that cannot be loaded.

    The provider itself must not be loaded for this: it would take its host's address before there is one.

    Args:
        names: such as libcudart.so.13.
        packages: the folder with the package `nvidia`, whose layout has changed between versions of CUDA.
    """
    return [name for name in names if not _loads(name, packages)]


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


def _loads(name: str, packages: Path) -> bool:
    # By its name alone, the linker finds what is loaded already, and what is on its path.
    for file in (name, *map(str, packages.glob(f"nvidia/*/lib/{name}"))):
        try:
            ctypes.CDLL(file)
        except OSError:
            continue
        return True
    return False
