"""A missing compiler for torch.compile is reported before anything is loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.devices.compilers import check_compiler, find_missing
from training.recipe import resolve


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A directory with Python.h."""
    (tmp_path / "Python.h").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("device_type", "environ", "installed", "said"),
    [
        ("cpu", {}, ["gcc"], r"a C\+\+ compiler, but g\+\+ is not on the PATH.*apt-get install g\+\+.*CXX"),
        ("cpu", {"CXX": "clang++"}, ["g++"], r"clang\+\+ is not on the PATH"),
        ("cuda", {}, ["g++"], r"a C compiler, but clang or gcc is not on the PATH.*apt-get install gcc.*CC"),
    ],
)
def test_a_missing_compiler_is_named_with_its_package(
    device_type: str, environ: dict[str, str], installed: list[str], said: str, headers: Path
) -> None:
    """C++ for a CPU, C for a GPU, or the compiler that CXX or CC names."""
    missing = find_missing(device_type, environ, lambda name: name if name in installed else None, headers)
    assert missing is not None
    assert re.search(said, missing)


@pytest.mark.parametrize(
    ("device_type", "environ", "installed"),
    [("cpu", {}, "g++"), ("cpu", {"CXX": "clang++"}, "clang++"), ("cuda", {}, "gcc"), ("cuda", {}, "clang")],
)
def test_nothing_is_missing(device_type: str, environ: dict[str, str], installed: str, headers: Path) -> None:
    """Any one compiler is enough; Python's headers are needed too."""

    def which(name: str) -> str | None:
        return name if name == installed else None

    assert find_missing(device_type, environ, which, headers) is None
    missing = find_missing(device_type, environ, which, headers / "elsewhere")
    assert missing is not None
    assert "elsewhere has no Python.h" in missing


def test_a_recipe_that_compiles_nothing_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes without training.compile run on machines without a compiler."""
    monkeypatch.setenv("PATH", "")
    check_compiler(resolve("lenet5-fake"), torch.device("cpu"))


def test_a_run_without_a_compiler_ends_before_the_data(tmp_path: Path) -> None:
    """One line says what to install; the exit code is 1."""
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "training", "run", "lenet5-fake", "--set", "training.compile=true"),
            *(
                "--device",
                "cpu",
                "--run-dir",
                str(tmp_path / "run"),
                "--repository",
                str(tmp_path / "models"),
            ),
        ],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("lenserve-train run: training.compile=true needs a C++ compiler, but g++ is not")
    assert line.endswith("or set training.compile=false")
