"""Which kernels CUDA runs: the fastest, or those that give the same bits twice. A CPU has one kind alone."""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

import torch

Kernels = Literal["fast", "reproducible"]

# cuBLAS sums in a fixed order only in a workspace of fixed size: one of the two that its documentation names.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_ABOUT_DETERMINISM = r"(?s).*determinis"  # in every warning of torch that an operation is not
_OPERATION = re.compile(r"(.+?) (?:does not have a deterministic|defaults to a non-deterministic)")


def use_kernels(kernels: Kernels, device: torch.device) -> None:
    """Choose kernels for this process, before the first matrix product.

    On CUDA `fast` measures the algorithms of each convolution, takes the fastest, and rounds the factors of
    float32 products to TF32 (10 bits of fraction, of 23). `reproducible` takes deterministic algorithms and
    full float32; what has no deterministic form runs too, and torch warns: see `reporting_nondeterminism`.
    On a CPU all that runs is deterministic, whatever is asked for.
    """
    on_cuda = device.type == "cuda"
    fast = on_cuda and kernels == "fast"
    if on_cuda and not fast:
        os.environ.setdefault(*_WORKSPACE)
    torch.use_deterministic_algorithms(not fast, warn_only=on_cuda and not fast)
    # It would write every new tensor twice: torch means it to show reads of memory that nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = fast
    torch.backends.cudnn.deterministic = not fast
    _allow_tf32(products=fast, convolutions=fast)


def uses_fast_kernels(device: torch.device) -> bool:
    """Whether `use_kernels` chose the fastest."""
    return device.type == "cuda" and torch.backends.cudnn.benchmark


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute all float32 values in here in full: without TF32 and without autocast."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _allow_tf32(products=False, convolutions=False)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _allow_tf32(products=products, convolutions=convolutions)


@contextmanager
def reporting_nondeterminism(report: Callable[[str], None]) -> Iterator[None]:
    """Report each operation once of which torch warns in here that it has no deterministic form."""
    reported: set[str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_ABOUT_DETERMINISM, category=UserWarning)
        # torch.compile's advice to allow TF32, which was turned off on purpose.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)
        others = warnings.showwarning

        def show(  # noqa: PLR0917 - as warnings calls it
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
    # By the older flags and not by fp32_precision: once the new one is set, torch 2.11 to 2.13 raises where
    # an older flag is read, as torch.compile's autotuning does. Writing the older flags sets the new one too.
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
