"""Which precision is served: by the setting, the device and the CPU."""

from pathlib import Path

import pytest

from serving.bundle import Precision
from serving.engine.base import Device
from serving.models.precision import choose_precision, read_cpu_flags

CPU, CUDA = Device("cpu", 0, "tests"), Device("cuda", 0, "tests")
VNNI = frozenset({"sse2", "avx512_vnni"})
PLAIN = frozenset({"sse2"})


@pytest.mark.parametrize(
    ("requested", "device", "flags", "precision"),
    [
        ("auto", CPU, VNNI, "int8"),
        ("auto", CPU, PLAIN, None),
        ("auto", CUDA, VNNI, "fp16"),
        ("fp32", CUDA, VNNI, None),
        ("fp32", CPU, VNNI, None),
        ("int8", CPU, PLAIN, "int8"),
        ("fp16", CPU, PLAIN, "fp16"),
    ],
)
def test_auto_follows_the_device_and_the_cpu(
    requested: str, device: Device, flags: frozenset[str], precision: Precision | None
) -> None:
    """INT8 on a CPU with dot products of bytes, FP16 on CUDA; other settings are obeyed."""
    assert choose_precision(requested, device, flags) == precision


def test_the_flags_of_this_machines_cpu_are_read() -> None:
    """On x86 Linux they have at least SSE2; elsewhere they are empty."""
    flags = read_cpu_flags()
    assert "sse2" in flags or not Path("/proc/cpuinfo").exists() or not flags
