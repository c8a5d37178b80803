"""The choice of a device is reported, and a missing one is never replaced."""

import ctypes
import subprocess
import sys

import pytest
import torch

from serving.errors import DeviceUnavailable, UsageError
from training.devices.device import Device, choose
from training.devices.kernels import Kernels

# What steps do with the outputs of a wide layer: pages that were faulted in after the first few. Behind the
# first block may lie what a thread keeps, and then it is too short for the next one and its alignment.
AGAIN = """
import resource
import torch
from training.devices.device import choose, prepare

prepare(choose("cpu"))
for _ in range(6):
    torch.ones(64 * 2**20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(64 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

RELEASED = """
import resource
from pathlib import Path
import torch
from training.devices.device import choose, prepare, release_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

prepare(choose("cpu"))
before = resident_mib()
torch.ones(256 * 2**20, dtype=torch.uint8)
kept = resident_mib() - before
release_freed_memory()
released = resident_mib() - before
torch.ones(256 * 2**20, dtype=torch.uint8)
print(kept, released, resident_mib() - before)
"""

FILLED = """
import torch
from training.devices.device import choose, prepare

prepare(choose("cpu"))
assert torch.are_deterministic_algorithms_enabled()
kept = [torch.empty(1000) for _ in range(100)]
print(sum(bool(each.isnan().all()) for each in kept))
"""


def test_auto_says_what_it_chose_and_why() -> None:
    """The description has the reason and the machine's name."""
    device = choose("auto")
    assert device.torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.reason.startswith("auto: ")
    assert device.machine


@pytest.mark.parametrize("kernels", [None, "fast", "reproducible"])
def test_a_cpu_s_kernels_are_reproducible_whatever_is_asked_for(kernels: Kernels | None) -> None:
    """--kernels has no effect on a CPU, and the description says so."""
    device = choose("cpu", kernels=kernels)
    assert device.kernels == "reproducible"
    assert device.describe().endswith("requested; reproducible kernels (always, on a CPU)")


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        ("fast", "fast kernels (TF32, the fastest algorithms): results may differ between runs"),
        ("reproducible", "reproducible kernels (full FP32, deterministic algorithms)"),
    ],
)
def test_a_gpu_s_line_says_which_kernels_it_runs(kernels: Kernels, said: str) -> None:
    """The description has the device, its name, the reason and the kernels."""
    device = Device(torch.device("cuda", 1), "NVIDIA H100", "requested", kernels)
    assert device.describe() == f"device: cuda:1 (NVIDIA H100), requested; {said}"


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:7"])
def test_missing_cuda_is_reported(asked: str) -> None:
    """There is no fallback to the CPU: the message says how many devices there are."""
    index = int(asked.partition(":")[2] or 0)
    if torch.cuda.device_count() > index:
        pytest.skip(f"this machine has {asked}")
    with pytest.raises(DeviceUnavailable, match=f"device {asked} was requested, but PyTorch .* finds"):
        choose(asked)


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "", "CPU"])
def test_other_words_are_wrong_usage(asked: str) -> None:
    """A misspelt device is a UsageError."""
    with pytest.raises(UsageError, match=": use auto, cpu, cuda or cuda:N"):
        choose(asked)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
def test_memory_is_kept_between_steps() -> None:
    """64 MiB, freed and allocated again, are the same pages: few of 16,384 page faults occur."""
    ended = subprocess.run([sys.executable, "-c", AGAIN], check=True, capture_output=True, text=True)
    assert int(ended.stdout) < 1000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="malloc_trim is glibc's")
def test_memory_is_released_after_training() -> None:
    """What was kept, and what is freed from then on: 256 MiB each."""
    ended = subprocess.run([sys.executable, "-c", RELEASED], check=True, capture_output=True, text=True)
    kept, released, later = map(float, ended.stdout.split())
    assert kept > 200
    assert released < 100
    assert later < 100


def test_new_tensors_are_not_filled_before_they_are_written() -> None:
    """PyTorch's deterministic mode would fill each with NaN."""
    ended = subprocess.run([sys.executable, "-c", FILLED], check=True, capture_output=True, text=True)
    assert int(ended.stdout) == 0
