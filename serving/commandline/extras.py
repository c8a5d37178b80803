"""Checks that the extra of a command is installed; if not, names the `pip` command.

A wheel cannot exclude a second build of ONNX Runtime: pip installs both, and they overwrite each other's
files.
"""

from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

from serving.errors import UsageError

_SERVER_MODULES = ("onnxruntime", "grpc_health", "grpc_reflection", "h11", "hpack", "uvloop")
_TRAINING_MODULES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "scipy",
    "sklearn",
    "matplotlib",
    "captum",
    "safetensors",
)
_IMPORT_MODULES = ("onnx", "onnxruntime")
_ONNX_RUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu")


def require_server() -> None:
    """Check that the server's packages are installed, with one build of ONNX Runtime.

    Raises:
        UsageError: a package is missing, or both builds are installed; names the `pip` command to run.
    """
    if missing := _missing(_SERVER_MODULES):
        raise UsageError(
            f"the server is not installed ({missing}): "
            "in a checkout, pip install '.[serve]', or '.[serve-cpu]' for CPUs only"
        )
    if all(map(_is_installed, _ONNX_RUNTIME_BUILDS)):
        both = " and ".join(_ONNX_RUNTIME_BUILDS)
        raise UsageError(
            f"{both} are both installed and overwrite each other's files: "
            f"pip uninstall {' '.join(_ONNX_RUNTIME_BUILDS)}, then in a checkout pip install '.[serve]' "
            "(GPU and CPU) or '.[serve-cpu]'"
        )


def require_import() -> None:
    """Check that the packages of `lenserve models import` are installed.

    Raises:
        UsageError: a package is missing; names the `pip` command to run.
    """
    if missing := _missing(_IMPORT_MODULES):
        raise UsageError(
            f"importing models is not installed ({missing}): in a checkout, pip install '.[serve,import]', "
            "or '.[serve-cpu,import]' for CPUs only"
        )


def require_training() -> None:
    """Check that the training job's packages are installed.

    Raises:
        UsageError: a package is missing; names the `pip` command to run.
    """
    if missing := _missing(_TRAINING_MODULES):
        raise UsageError(
            f"the training job is not installed ({missing}): in a checkout, pip install '.[serve,train]'"
        )


def _missing(modules: Sequence[str]) -> str:
    """Describe the modules that are not installed; empty if all are installed."""
    names = [module for module in modules if find_spec(module) is None]
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"missing: {names[0]}{others}" if names else ""


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
