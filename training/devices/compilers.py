"""What torch.compile needs on this machine, looked for before a run begins."""

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
    """Look for all that torch.compile needs, where the recipe asks for it.

    Raises:
        CompilerMissing: something is missing; says what to install.
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
    """What is missing, and how to install it; none: nothing.

    torch compiles C++ for a CPU, by $CXX or g++; Triton compiles C for a GPU, by $CC, clang or gcc. Both
    include Python's headers.
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
            f"a {language} compiler, and {' or '.join(tried)} is not on the PATH: install one "
            f"(apt-get install {package}), name one by the environment variable {variable}"
        )
    if not (headers / "Python.h").exists():
        return f"Python's headers, and {headers} has no Python.h: install them (apt-get install python3-dev)"
    return None
