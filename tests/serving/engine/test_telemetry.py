"""ONNX Runtime reports nothing to its maker."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SUPPRESSED_BY = {"CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}  # also by the variables of CI services


@pytest.mark.parametrize(
    "module", ["serving.engine.onnx", "serving.importing.sessions", "training.evaluation.onnx_session"]
)
def test_nothing_is_collected(module: str, tmp_path: Path) -> None:
    """Collecting starts with an identifier in the user's cache; a program that turned it off writes none."""
    environment = {name: value for name, value in os.environ.items() if name not in SUPPRESSED_BY}
    subprocess.run(
        [sys.executable, "-c", f"import {module}"], env=environment | {"HOME": str(tmp_path)}, check=True
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nothing_else_imports_it() -> None:
    """The packages that turn it off are the only ones whose modules import ONNX Runtime."""
    root = Path(__file__).parents[3]
    importing = {
        path.relative_to(root).as_posix()
        for package in ("serving", "training")
        for path in (root / package).rglob("*.py")
        if re.search(r"^\s*(?:import|from) onnxruntime", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert all(
        name.startswith(("serving/engine/", "serving/importing/", "training/")) for name in importing
    ), importing
