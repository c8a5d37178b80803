"""Importing the contract between training and serving loads no heavy library."""

import json
import subprocess
import sys
from pathlib import Path

HEAVY = (
    "grpc",
    "onnxruntime",
    "torch",
    "torchvision",
    "google.protobuf",
    "prometheus_client",
    "onnx",
    "training",
)
PROGRAM = "import json, sys, serving.bundle; print(json.dumps(sorted(sys.modules)))"


def test_importing_the_bundle_loads_nothing_heavy() -> None:
    """A fresh interpreter that imports serving.bundle loads neither gRPC nor an engine nor torch."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        check=True,
        capture_output=True,
        text=True,
    )
    modules = json.loads(done.stdout)
    assert "serving.bundle.repository" in modules
    assert [name for name in modules if name.startswith(HEAVY) and not name.startswith("onnx_")] == []
