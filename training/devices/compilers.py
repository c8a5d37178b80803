"""Checks before a run that torch.compile has a compiler and Python's headers."""

import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from training.errors import CompilerMissing
from training.recipe import Recipe

_INSTEAD = "or set training.compile=false"


def check_compiler(recipe: Recipe, device: torch.device) -> None:
    """Check the requirements of torch.compile, if the recipe sets training.compile.

    Raises:
        CompilerMissing: a compiler or Python's headers are missing.
    """
    if not recipe.training.compile or recipe.method != "train":
        return
    headers = Path(sysconfig.get_path("include"))
    missing = find_missing(device.type, os.environ, shutil.which, headers)
    if missing is not None:
        raise CompilerMissing(f"training.compile=true needs {missing}, {_INSTEAD}")


def find_missing(
    device_type: str, environ: Mapping[str, str], which: Callable[[str], str | None], headers: Path
) -> str | None:
    """Return what is missing and how to install it, or None.

    For a CPU torch compiles C++ with $CXX or g++. For a GPU Triton compiles C with $CC, clang or gcc. Both
    need Python's headers.

    Args:
        device_type: "cpu" or "cuda".
        environ: environment variables.
        which: finds a program on the PATH, as shutil.which does.
        headers: Python's include directory.
    """
    tried: tuple[str, ...]
    if device_type == "cuda":
        language, variable, tried, package = "C", "CC", ("clang", "gcc"), "gcc"
    else:
        language, variable, tried, package = "C++", "CXX", ("g++",), "g++"
    if variable in environ:
        tried = (environ[variable],)
    if not any(which(name) for name in tried):
        return (
            f"a {language} compiler, but {' or '.join(tried)} is not on the PATH: install one "
            f"(apt-get install {package}), name one in the environment variable {variable}"
        )
    if not (headers / "Python.h").exists():
        return f"Python's headers, but {headers} has no Python.h: install them (apt-get install python3-dev)"
    return None
