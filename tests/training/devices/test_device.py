"""A device is chosen aloud and never replaced in silence."""

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

FILLED = """
import torch
from training.devices.device import choose, prepare

prepare(choose("cpu"))
assert torch.are_deterministic_algorithms_enabled()
kept = [torch.empty(1000) for _ in range(100)]
print(sum(bool(each.isnan().all()) for each in kept))
"""


def test_auto_says_what_it_chose_and_why() -> None:
    """The reason is there, and so is the machine's name."""
    device = choose("auto")
    assert device.torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.reason.startswith("auto: ")
    assert device.machine


@pytest.mark.parametrize("kernels", [None, "fast", "reproducible"])
def test_a_cpu_s_kernels_are_reproducible_whatever_is_asked_for(kernels: Kernels | None) -> None:
    """The choice is a GPU's, and the line of the run says so."""
    device = choose("cpu", kernels=kernels)
    assert device.kernels == "reproducible"
    assert device.describe().endswith("asked for; reproducible kernels (always, on a CPU)")


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        ("fast", "fast kernels (TF32, the fastest algorithms): results may differ between runs"),
        ("reproducible", "reproducible kernels (full FP32, deterministic algorithms)"),
    ],
)
def test_a_gpu_s_line_says_which_kernels_it_runs(kernels: Kernels, said: str) -> None:
    """Beside the device, its name and the reason."""
    device = Device(torch.device("cuda", 1), "NVIDIA H100", "asked for", kernels)
    assert device.describe() == f"device: cuda:1 (NVIDIA H100), asked for; {said}"


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_that_is_not_there_is_refused(asked: str) -> None:
    """Never a quiet fall back to the CPU: the message says how many devices there are."""
    index = int(asked.partition(":")[2] or 0)
    if torch.cuda.device_count() > index:
        pytest.skip(f"this machine has {asked}")
    with pytest.raises(DeviceUnavailable, match=f"device {asked} was asked for, but PyTorch .* finds"):
        choose(asked)


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "", "CPU"])
def test_other_words_are_wrong_usage(asked: str) -> None:
    """A misspelt device is the command line's fault."""
    with pytest.raises(UsageError, match=": use auto, cpu, cuda or cuda:N"):
        choose(asked)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
def test_memory_is_kept_between_steps() -> None:
    """64 MiB that are freed and asked for again are the same pages: few of 16,384 are cleared anew."""
    ended = subprocess.run([sys.executable, "-c", AGAIN], check=True, capture_output=True, text=True)
    assert int(ended.stdout) < 1000


def test_new_tensors_are_not_filled_before_they_are_written() -> None:
    """Deterministic mode would fill each with NaN, which no step ever reads."""
    ended = subprocess.run([sys.executable, "-c", FILLED], check=True, capture_output=True, text=True)
    assert int(ended.stdout) == 0
