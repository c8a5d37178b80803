"""Chooses the precision in which networks are served. Independent of engines."""

from pathlib import Path

from serving.bundle import MODEL_FILE, Bundle, Precision, variant_file
from serving.engine.base import Device

# Instruction sets with dot products of bytes, which make INT8 faster than FP32, as named in /proc/cpuinfo.
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def choose_precision(requested: str, device: Device, cpu_flags: frozenset[str]) -> Precision | None:
    """Return the variant to serve if a version has it; None: the exported file, FP32. A pure function.

    Args:
        requested: auto, fp32, int8 or fp16.
        device: where networks run.
        cpu_flags: instruction sets of the CPU, as named in /proc/cpuinfo.
    """
    if requested == "int8":
        return "int8"
    if requested == "fp16" or (requested == "auto" and device.kind == "cuda"):
        return "fp16"
    return "int8" if requested == "auto" and cpu_flags & _INT8_FLAGS else None


def read_cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this machine's CPU; empty if /proc/cpuinfo lists none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split()[2:] for line in lines if line.startswith("flags")), ()))


def network_file(bundle: Bundle, precision: Precision | None) -> Path:
    """Return the ONNX file of a version in a precision; None: the exported file."""
    return bundle.folder / (MODEL_FILE if precision is None else variant_file(precision))


def golden_tolerance(bundle: Bundle, precision: Precision | None) -> float:
    """Return the tolerance of golden probabilities in a precision."""
    manifest = bundle.manifest
    return manifest.golden_tolerance if precision is None else manifest.variants[precision].golden_tolerance
