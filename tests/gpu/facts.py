"""What the machine is, and whether CUDA that was asked for is really used, by torch and by ONNX Runtime."""

import os
import platform
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime

from serving.engine.devices import choose_device, find_cuda
from serving.engine.onnx import OnnxEngine
from tests.gpu import machine
from tests.gpu.graphs import convolution
from tests.gpu.rows import PartOptions, Rows

_SIDE = 32  # pixels


def measure(options: PartOptions, rows: Rows) -> None:
    """The card first: it stands beside every other figure."""
    if options.device == "cuda":
        _card(rows)
    cores = len(os.sched_getaffinity(0))
    rows.add("processor", f"{_processor()}, {cores} cores, Python {platform.python_version()}")
    with rows.trying("an ONNX Runtime session"):
        _onnx_runtime(options, rows)
    with rows.trying("torch"):
        _torch(options, rows)


def _card(rows: Rows) -> None:
    fields = ("name", "driver_version", "memory.total", "power.limit")
    try:
        name, driver, memory_mib, power_w = machine.ask(*fields)
    except (OSError, subprocess.SubprocessError) as error:
        rows.add("card", "unknown", wrong=f"nvidia-smi failed: {error}")
    else:
        rows.add("card", f"{name}, {memory_mib} MiB, driver {driver}, {power_w} W", name=name, driver=driver)


def _onnx_runtime(options: PartOptions, rows: Rows) -> None:
    available = onnxruntime.get_available_providers()
    rows.add("ONNX Runtime", f"{onnxruntime.__version__}, built with {', '.join(available)}")
    count, why_none = find_cuda()
    rows.add("CUDA devices that serving finds", str(count) if count else f"none: {why_none}")
    device = choose_device(options.device, count, why_none)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(convolution(_SIDE, 16), file)
        began_s = time.perf_counter()
        engine = OnnxEngine.load(file, device, threads=1, max_batch_size=8)
        loaded_s = time.perf_counter() - began_s
        reference = OnnxEngine.load(file, choose_device("cpu", count, why_none), threads=1, max_batch_size=8)
        images = np.random.default_rng(0).integers(
            0, 256, (5, _SIDE, _SIDE, 3), dtype=np.uint8
        )  # (N, H, W, C)
        gap = np.abs(engine.run(images).probabilities - reference.run(images).probabilities).max()
    providers = engine._session.get_providers()
    rows.add(
        "providers of a session",
        f"{', '.join(providers)}; loaded in {loaded_s:.2f} s",
        wrong="" if providers[0] == device.provider else f"asked for {device.provider}",
        providers=providers,
        seconds=loaded_s,
    )
    rows.add(
        "a convolution on the device and on the CPU",
        f"probabilities differ by {gap:.1e} at most",
        wrong="" if gap < 1e-4 else "at most 1e-4 is allowed",
        gap=float(gap),
    )


def _torch(options: PartOptions, rows: Rows) -> None:
    import torch  # noqa: PLC0415 - after the engine: serving never has torch's CUDA libraries in its process

    found = torch.cuda.is_available()
    rows.add(
        "torch",
        f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"{torch.cuda.device_count()} devices",
        wrong="CUDA was asked for and torch finds none" if options.device == "cuda" and not found else "",
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
