"""Where the mathematics runs: asked for, found, and said aloud. A missing device is never replaced."""

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.errors import DeviceUnavailable, UsageError
from training.devices.kernels import Kernels, use_kernels

# Small networks lose more to waking threads than they win by them.
_MAX_THREADS = 8

# Of mallopt(3), as malloc.h has them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_CPU_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Device:
    """What was chosen, and why."""

    torch_device: torch.device
    machine: str  # the name of the processor or GPU
    reason: str
    kernels: Kernels

    def describe(self) -> str:
        """The line that a run begins with."""
        return f"device: {self.torch_device} ({self.machine}), {self.reason}; {self._describe_kernels()}"

    def _describe_kernels(self) -> str:
        if self.torch_device.type == "cpu":
            return "reproducible kernels, as always on a CPU"
        if self.kernels == "fast":
            return "fast kernels (TF32, the fastest algorithms): results may differ between runs"
        return "reproducible kernels (full FP32, deterministic algorithms)"


def choose(asked: str, process: int = 0, kernels: Kernels | None = None) -> Device:
    """Choose a device.

    Args:
        asked: auto, cpu, cuda or cuda:N.
        process: number of this one on this machine; auto and cuda give each a GPU of its own.
        kernels: that CUDA shall run; none: fast. A CPU's are always reproducible.

    Raises:
        UsageError: it is none of these.
        DeviceUnavailable: CUDA was asked for and is not there.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return _cuda(process % torch.cuda.device_count(), "auto: CUDA is there", kernels)
        return _cpu(
            "auto: no CUDA device" if torch.version.cuda else "auto: this torch is built without CUDA"
        )
    if asked == "cpu":
        return _cpu("asked for")
    if not (match := re.fullmatch(r"cuda(?::(\d+))?", asked)):
        raise UsageError(f"invalid --device {asked!r}: use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    # Where each process sees a GPU of its own alone, its number is 0 in all of them.
    index = int(match[1]) if match[1] else process % max(1, count)
    if index >= count:
        raise DeviceUnavailable(
            f"device {asked} was asked for, but torch {torch.__version__} finds {count} CUDA devices"
        )
    return _cuda(index, "asked for", kernels)


def prepare(device: Device, processes: int = 1) -> None:
    """Set this process up for training: its threads, its GPU and kernels, memory that it keeps.

    The same run twice gives the same bits on a CPU. On a GPU it does so with reproducible kernels, as far as
    torch has deterministic ones; with fast kernels it does not.

    Args:
        device: that was chosen.
        processes: that share this machine's cores.
    """
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, min(_MAX_THREADS, cores) // processes))
    use_kernels(device.kernels, device.torch_device)
    if device.torch_device.type == "cuda":
        torch.cuda.set_device(device.torch_device)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed; other libraries lack the call.

    It would give blocks of 32 MiB and more back at once, and a training step frees what the next one asks for
    again: the kernel would clear every page of a wide layer's outputs anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


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
