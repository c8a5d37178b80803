"""Turns out-of-memory errors of the GPU or the machine into one line: memory in use, and what to change."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.devices.memory import GIB, available_bytes
from training.errors import OutOfMemory
from training.recipe import Recipe

# PyTorch has an exception type only for its GPU allocator. Errors of CUDA, its libraries and the CPU
# allocator are recognised by their text.
_ON_GPU = re.compile(r"CUDA (error: )?out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|Cuda failure 2\b")
_ON_CPU = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc")
_REQUESTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB}


@contextmanager
def explaining_out_of_memory(phase: str, device: torch.device, advice: str) -> Iterator[None]:
    """Convert out-of-memory errors within the context.

    Args:
        phase: what runs in the context, such as "training".
        device: device that it runs on.
        advice: what to change, such as "set training.batch_size lower (now 64)".

    Raises:
        OutOfMemory: the GPU or the machine is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) or _ON_GPU.search(str(error)):
            full = f"the GPU is out of memory in {phase}: {_use_of_gpu(device)}"
        elif isinstance(error, MemoryError) or _ON_CPU.search(str(error)):
            full = f"the machine is out of memory in {phase}: {_use_of_machine()}"
        else:
            raise
        raise OutOfMemory(f"{full}{_requested(str(error))}; {advice}") from error


def training_advice(recipe: Recipe, device: torch.device) -> str:
    """Advise how to make a training step use less memory."""
    training = recipe.training
    ways = [f"training.batch_size lower (now {training.batch_size:,})"]
    if training.precision == "float32":
        ways.append("training.precision=bfloat16")
    if training.cuda_graphs and device.type == "cuda":  # a captured step keeps its memory
        ways.append("training.cuda_graphs=false")
    return f"set {', or '.join(ways)}, or choose a smaller network"


def inference_advice(recipe: Recipe) -> str:
    """Advise how to make a forward pass use less memory. Its batch size depends only on the image size."""
    height, width, _ = recipe.geometry.shape
    return (
        f"choose a smaller network, or set geometry.height and geometry.width lower (now {height} x {width})"
    )


def _use_of_gpu(device: torch.device) -> str:
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError, ValueError):  # CUDA has no memory left for the query, or is missing
        return "it is in use"
    return _in_use(total_bytes - free_bytes, total_bytes)


def _use_of_machine() -> str:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _in_use(max(0, total_bytes - available_bytes()), total_bytes)


def _in_use(used_bytes: int, total_bytes: int) -> str:
    return f"{used_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB are in use"


def _requested(text: str) -> str:
    found = _REQUESTED.search(text)
    if found is None:
        return ""
    size_bytes = float(found[1]) * _BYTES[found[2]]
    size = f"{size_bytes / GIB:,.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:,.0f} MiB"
    return f" and {size} more were requested"
