"""A group of processes, though of one alone: its sums go through NCCL on a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from training import data
from training.devices.device import Device
from training.devices.process_group import SINGLE_PROCESS, join
from training.learning.loop import train
from training.recipe import resolve
from training.run.display import Display
from training.run.interrupts import Interrupts

pytestmark = pytest.mark.gpu


def test_a_group_of_one_process_sums_through_its_backend(device: Device, tmp_path: Path) -> None:
    """NCCL on a GPU, gloo on a CPU: what goes through it comes back, and a run in the group learns."""
    with join(SINGLE_PROCESS, device.torch_device, even_if_single=True) as group:
        values = torch.arange(3.0, device=device.torch_device)
        assert torch.equal(group.sum_(values.clone()), values)
        assert torch.equal(group.gather(values), values[None])
        group.sum_many_([values, values.clone()])
        recipe = resolve("lenet5-fake", ["training.epochs=1", "network.batch_norm=true"])
        trained = train(
            recipe,
            data.load(recipe.data, recipe.geometry, None)[0],
            device=device.torch_device,
            checkpoint_path=tmp_path / "checkpoint.pt",
            display=Display(Console(quiet=True)),
            interrupts=Interrupts(),
            group=group,
        )
    assert np.isfinite([record.train_loss for record in trained.history]).all()
