"""Memory that is full, a GPU's or the machine's, as one sentence that says how full and what to set."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.devices.memory import GIB, available_bytes
from training.errors import OutOfMemory
from training.recipe import Recipe

# torch has a type of its own for what its allocator on the GPU lacks. The rest is text: of CUDA, of its
# libraries, and of the allocator on the CPU.
_ON_GPU = re.compile(r"CUDA (error: )?out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|Cuda failure 2\b")
_ON_CPU = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB}


@contextmanager
def explaining_out_of_memory(phase: str, device: torch.device, advice: str) -> Iterator[None]:
    """Turn what torch raises in here, when memory is full, into one sentence.

    Args:
        phase: what runs in here: training, validation.
        device: on which.
        advice: what to set: "set training.batch_size lower (now 64)".

    Raises:
        OutOfMemory: the memory of the GPU, or of the machine, is full.
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
        raise OutOfMemory(f"{full}{_asked(str(error))}; {advice}") from error


def training_advice(recipe: Recipe, device: torch.device) -> str:
    """What makes a training step smaller on a device."""
    training = recipe.training
    ways = [f"training.batch_size lower (now {training.batch_size:,})"]
    if training.precision == "float32":
        ways.append("training.precision=bfloat16")
    if training.cuda_graphs and device.type == "cuda":  # a recorded step keeps its memory to itself
        ways.append("training.cuda_graphs=false")
    return f"set {', or '.join(ways)}, or choose a smaller network"


def inference_advice(recipe: Recipe) -> str:
    """What makes a forward pass smaller, whose batches follow from the size of the images."""
    height, width, _ = recipe.geometry.shape
    return (
        f"choose a smaller network, or set geometry.height and geometry.width lower (now {height} x {width})"
    )


def _use_of_gpu(device: torch.device) -> str:
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError, ValueError):  # CUDA itself has no memory to answer, or is not there
        return "it is in use"
    return _in_use(total_bytes - free_bytes, total_bytes)


def _use_of_machine() -> str:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _in_use(max(0, total_bytes - available_bytes()), total_bytes)


def _in_use(used_bytes: int, total_bytes: int) -> str:
    return f"{used_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB are in use"


def _asked(said: str) -> str:
    found = _ASKED.search(said)
    if found is None:
        return ""
    size_bytes = float(found[1]) * _BYTES[found[2]]
    size = f"{size_bytes / GIB:,.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:,.0f} MiB"
    return f" and {size} more were asked for"
