"""Finds CUDA devices, and chooses where networks run. Independent of networks."""

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
    """Choose where to run. A pure function.

    Args:
        requested: auto, cpu, cuda or cuda:N.
        cuda_devices: the number of CUDA devices.
        why_none: the reason if there are none.

    Raises:
        DeviceUnavailable: CUDA was requested but is not available. There is no silent fallback.
    """
    if requested == "cpu":
        return Device("cpu", 0, "requested")
    if requested == "auto":
        if cuda_devices:
            return Device("cuda", 0, f"auto: {cuda_devices} CUDA device(s) found")
        return Device("cpu", 0, f"auto: {why_none}")
    index = int(requested.partition(":")[2] or 0)
    if index >= cuda_devices:
        found = why_none or f"this machine has {cuda_devices} CUDA device(s)"
        raise DeviceUnavailable(f"device {requested} was requested, but {found}")
    return Device("cuda", index, "requested")


def find_cuda() -> tuple[int, str]:
    """Count the CUDA devices that ONNX Runtime could use.

    Returns: the number, and the reason if it is 0.
    """
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return 0, f"ONNX Runtime {onnxruntime.__version__} was built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "no NVIDIA driver was found (libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return 0, "the NVIDIA driver found no device"
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    problem = why_too_old(version.value) or why_unusable()
    if problem:  # otherwise an idle GPU would go unnoticed
        _log.warning("cuda_unusable", extra={"devices": count.value, "reason": problem})
        return 0, problem
    return count.value, ""


def find_device(
    requested: str,
    *,
    allow_tf32: bool = False,
    cuda_graphs: bool = True,
    find: Callable[[], tuple[int, str]] = find_cuda,
) -> Device:
    """Find the CUDA devices of this machine, and choose where to run.

    Args:
        requested: auto, cpu, cuda or cuda:N.
        allow_tf32: whether FP32 networks may run in TF32 on CUDA.
        cuda_graphs: whether networks may run as CUDA graphs.
        find: finds CUDA devices; not called if the CPU is requested.

    Raises:
        DeviceUnavailable: as `choose_device`.
    """
    found = (0, "") if requested == "cpu" else find()
    return replace(choose_device(requested, *found), allow_tf32=allow_tf32, cuda_graphs=cuda_graphs)
