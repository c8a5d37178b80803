"""Chooses the training device and reports the choice. A missing device is an error: no silent fallback."""

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.cpu_quota import available_cores
from serving.errors import DeviceUnavailable, UsageError
from training.devices.kernels import Kernels, use_kernels

# With more threads, small networks lose more time to wake-ups than they gain.
_MAX_THREADS = 8

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_DEFAULT_MMAP_MAX = 65_536
_LARGE_BYTES = 8 * 2**20

_CPU_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Device:
    """The chosen device, and why it was chosen."""

    torch_device: torch.device
    machine: str  # name of the processor or GPU
    reason: str
    kernels: Kernels

    def describe(self) -> str:
        """Return one line for the start of a run: device, reason and kernels."""
        return f"device: {self.torch_device} ({self.machine}), {self.reason}; {self._describe_kernels()}"

    def _describe_kernels(self) -> str:
        if self.torch_device.type == "cpu":
            return "reproducible kernels (always, on a CPU)"
        if self.kernels == "fast":
            return "fast kernels (TF32, the fastest algorithms): results may differ between runs"
        return "reproducible kernels (full FP32, deterministic algorithms)"


def choose(requested: str, process: int = 0, kernels: Kernels | None = None) -> Device:
    """Choose a device.

    Args:
        requested: "auto", "cpu", "cuda" or "cuda:N".
        process: local rank of this process; with "auto" and "cuda" each process gets a separate GPU.
        kernels: CUDA kernels, "fast" or "reproducible"; None: "fast". On a CPU always "reproducible".

    Raises:
        UsageError: `requested` is invalid.
        DeviceUnavailable: the requested CUDA device does not exist.
    """
    if requested == "auto":
        if torch.cuda.is_available():
            return _cuda(process % torch.cuda.device_count(), "auto: CUDA is available", kernels)
        return _cpu(
            "auto: no CUDA device" if torch.version.cuda else "auto: this build of PyTorch has no CUDA"
        )
    if requested == "cpu":
        return _cpu("requested")
    if not (match := re.fullmatch(r"cuda(?::(\d+))?", requested)):
        raise UsageError(f"invalid --device {requested!r}: use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    # If each process sees only its own GPU, that GPU's index is 0 in every process.
    index = int(match[1]) if match[1] else process % max(1, count)
    if index >= count:
        raise DeviceUnavailable(
            f"device {requested} was requested, but PyTorch {torch.__version__} finds {count} CUDA "
            "devices: use --device auto or cpu"
        )
    return _cuda(index, "requested", kernels)


def prepare(device: Device, processes: int = 1) -> None:
    """Set up this process for training: threads, GPU, kernels and memory allocation.

    On a CPU, a repeated run gives identical bits. On a GPU it does so only with reproducible kernels, as far
    as PyTorch has deterministic ones.

    Args:
        device: the chosen device.
        processes: number of processes that share this machine's cores.
    """
    cores = available_cores()
    torch.set_num_threads(max(1, min(_MAX_THREADS, cores) // processes))
    use_kernels(device.kernels, device.torch_device)
    if device.torch_device.type == "cuda":
        torch.cuda.set_device(device.torch_device)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory; other C libraries lack mallopt.

    By default glibc returns freed blocks of at least 32 MiB to the kernel. The next training step allocates
    them again, and the kernel zeroes all pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """Return memory to the kernel when it is freed, from now on, and what is free already.

    After training every phase has blocks of other sizes: what `prepare` keeps would grow with each.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
        library.malloc_trim(0)


def _cpu(reason: str) -> Device:
    return Device(torch.device("cpu"), _cpu_name(), reason, "reproducible")


def _cuda(index: int, reason: str, kernels: Kernels | None) -> Device:
    name = torch.cuda.get_device_name(index)
    return Device(torch.device("cuda", index), name, reason, kernels or "fast")


def _cpu_name() -> str:
    cores = len(os.sched_getaffinity(0))
    try:
        found = _CPU_NAME.search(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return f"{found[1] if found else platform.machine()}, {cores} cores"
