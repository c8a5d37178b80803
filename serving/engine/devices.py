"""Looks for CUDA devices, and decides where networks run. Knows no network."""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import replace

import onnxruntime

from serving.engine.base import CUDA_PROVIDER, Device
from serving.engine.cuda import why_too_old, why_unusable
from serving.errors import DeviceUnavailable

_log = logging.getLogger(__name__)


def choose_device(requested: str, cuda_devices: int, why_none: str) -> Device:
    """Decide where to run. Looks at nothing but its arguments.

    Args:
        requested: auto, cpu, cuda or cuda:N.
        cuda_devices: how many there are.
        why_none: the reason where there are none.

    Raises:
        DeviceUnavailable: CUDA was asked for and is not there. It never falls back in silence.
    """
    if requested == "cpu":
        return Device("cpu", 0, "asked for")
    if requested == "auto":
        if cuda_devices:
            return Device("cuda", 0, f"auto: {cuda_devices} CUDA device(s) found")
        return Device("cpu", 0, f"auto: {why_none}")
    index = int(requested.partition(":")[2] or 0)
    if index >= cuda_devices:
        found = why_none or f"there are {cuda_devices} CUDA device(s)"
        raise DeviceUnavailable(f"device {requested} was asked for, but {found}")
    return Device("cuda", index, "asked for")


def find_cuda() -> tuple[int, str]:
    """Count the CUDA devices that ONNX Runtime could use.

    Returns: the number, and the reason where it is 0.
    """
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return 0, f"this ONNX Runtime {onnxruntime.__version__} is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return 0, "the NVIDIA driver finds no device"
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    problem = why_too_old(version.value) or why_unusable()
    if problem:  # a GPU lies idle: that must not go unnoticed
        _log.warning("cuda_unusable", extra={"devices": count.value, "reason": problem})
        return 0, problem
    return count.value, ""


def find_device(
    requested: str,
    *,
    allow_tf32: bool = False,
    cuda_graphs: bool = True,
    look: Callable[[], tuple[int, str]] = find_cuda,
) -> Device:
    """Look at this machine, and decide where to run.

    Args:
        requested: auto, cpu, cuda or cuda:N.
        allow_tf32: whether FP32 networks may be run in TF32 on CUDA.
        cuda_graphs: whether networks may be run as CUDA graphs.
        look: for CUDA devices, unless the CPU was asked for.

    Raises:
        DeviceUnavailable: as `choose_device`.
    """
    found = (0, "") if requested == "cpu" else look()
    return replace(choose_device(requested, *found), allow_tf32=allow_tf32, cuda_graphs=cuda_graphs)
