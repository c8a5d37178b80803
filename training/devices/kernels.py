"""Chooses CUDA kernels: the fastest, or reproducible ones. CPU kernels are always reproducible."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

import torch

Kernels = Literal["fast", "reproducible"]

# cuBLAS is deterministic only with a fixed workspace of one of two documented sizes.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_ABOUT_DETERMINISM = r"(?s).*determinis"  # part of every PyTorch warning about nondeterminism
_OPERATION = re.compile(r"(.+?) (?:does not have a deterministic|defaults to a non-deterministic)")


def use_kernels(kernels: Kernels, device: torch.device) -> None:
    """Choose the kernels of this process. Call it before the first matrix product.

    On CUDA, "fast" benchmarks the algorithms of each convolution, uses the fastest, and rounds the factors of
    float32 products to TF32 (10 of 23 fraction bits). "reproducible" uses deterministic algorithms and full
    float32; operations without a deterministic form still run, with a warning: see
    `reporting_nondeterminism`. On a CPU all kernels are deterministic.
    """
    on_cuda = device.type == "cuda"
    fast = on_cuda and kernels == "fast"
    if on_cuda and not fast:
        os.environ.setdefault(*_WORKSPACE)
    torch.use_deterministic_algorithms(not fast, warn_only=on_cuda and not fast)
    # By default PyTorch fills new tensors to reveal uninitialised reads, which doubles the writes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = fast
    torch.backends.cudnn.deterministic = not fast
    _allow_tf32(products=fast, convolutions=fast)


def uses_fast_kernels(device: torch.device) -> bool:
    """Check whether `use_kernels` chose fast kernels for a CUDA device."""
    return device.type == "cuda" and torch.backends.cudnn.benchmark


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 in full precision within the context: no TF32, no autocast."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _allow_tf32(products=False, convolutions=False)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _allow_tf32(products=products, convolutions=convolutions)


@contextmanager
def reporting_nondeterminism(report: Callable[[str], None]) -> Iterator[None]:
    """Report each operation without a deterministic form once, within the context."""
    reported: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_ABOUT_DETERMINISM, category=UserWarning)
        # torch.compile recommends TF32, which is deliberately off.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)
        others = warnings.showwarning

        def show(  # noqa: PLR0917 - the signature of warnings.showwarning
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not re.match(_ABOUT_DETERMINISM, str(message)):
                others(message, category, filename, lineno, file, line)
                return
            named = _OPERATION.match(str(message))
            operation = named[1] if named else "matrix multiplication (cuBLAS)"
            if operation not in reported:
                reported.add(operation)
                report(f"{operation} has no deterministic form on CUDA: results may differ between runs")

        warnings.showwarning = show
        yield


def _allow_tf32(*, products: bool, convolutions: bool) -> None:
    # The older flags, not fp32_precision: once that is set, torch 2.11 to 2.13 raises when an older flag is
    # read, for example by torch.compile's autotuning. Setting the older flags also sets the new one.
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
