"""The device that these tests run on: a GPU, or in a rehearsal the CPU."""

import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

from serving.bundle import Repository
from training.devices.device import Device, choose, prepare
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job


@pytest.fixture(scope="session")
def device() -> Device:
    """CUDA. Where it was asked for by name and is not there, tests fail; elsewhere they skip."""
    asked = os.environ.get("LENSERVE_GPU_DEVICE")
    if asked is None and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no CUDA device")
    chosen = choose(asked or "cuda")
    prepare(chosen)
    return chosen


@pytest.fixture
def job(tmp_path: Path, device: Device) -> Job:
    """A job with its own repository and run folder."""
    return Job(
        repository=Repository(tmp_path / "repository"),
        model="trained",
        run_dir=tmp_path / "run",
        data_root=None,
        device=device,
        display=Display(Console(quiet=True)),
        interrupts=Interrupts(),
    )


@pytest.fixture(scope="session")
def mnist_root(device: Device) -> Path | None:
    """The folder of the real MNIST; none where it is absent, or where the rehearsal has no time for it."""
    named = os.environ.get("LENSERVE_TEST_DATA")
    root = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    is_there = device.torch_device.type == "cuda" and (root / "MNIST" / "raw").is_dir()
    return root if is_there else None
