"""The training loop: resuming bit for bit, early stopping, errors."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.training.fake_recipe import FakeRecipe
from training.data import Dataset, load
from training.errors import CheckpointError, Diverged
from training.learning.history import EpochRecord
from training.learning.loop import TrainResult, train
from training.networks import Network, build
from training.recipe import Recipe, resolve
from training.run.display import Display
from training.run.interrupts import Interrupts

PLAIN = (
    "training.epochs=3",
    "network.dropout=0.3",
    "network.batch_norm=true",
    "augmentation.max_shift_px=2",
    "training.checkpoint_interval_steps=2",
)
EVERYTHING = (
    *PLAIN,
    "training.averaging=0.9",
    "training.optimizer=muon",
    "training.label_smoothing=0.1",
    "training.class_balance=sampler",
    "training.schedule=one-cycle",
    "training.max_gradient_norm=1.0",
    "augmentation.flip=alternating",
    "augmentation.max_rotation_degrees=10",
    "augmentation.trivial=true",
    "augmentation.mixup=0.4",
    "augmentation.cutmix=1.0",
)

# Trains in a process of its own, says every finished step, and leaves the bytes of all that was learnt.
PROGRAM = """
import sys
from pathlib import Path
import torch
from rich.console import Console
from training.data import load
from training.devices.device import choose, prepare
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.learning.loop import train
from training.recipe import resolve

class Speaking(Display):
    def step_done(self, steps):
        print(steps, flush=True)

folder = Path(sys.argv[1])
device = choose("cpu")
prepare(device)
recipe = resolve("lenet5-fake", sys.argv[2:])
dataset, _ = load(recipe.data, recipe.geometry, None)
trained = train(
    recipe, dataset, device=device.torch_device, checkpoint_path=folder / "checkpoint.pt",
    display=Speaking(Console(quiet=True)), interrupts=Interrupts(),
)
weights = b"".join(value.numpy().tobytes() for value in trained.network.state_dict().values())
losses = repr([(record.train_loss, record.validation_loss) for record in trained.history]).encode()
(folder / "learnt.bin").write_bytes(weights + losses)
"""


class Ticking(Display):
    """A clock that steps and validation advance by fixed times."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.now_s = 0.0

    def step_done(self, steps: int) -> None:
        """A step takes a second."""
        del steps
        self.now_s += 1

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """Validation takes much longer."""
        del record, is_best
        self.now_s += 1000


def test_the_time_of_an_epoch_is_that_of_its_steps(tmp_path: Path) -> None:
    """Validation and the checkpoint after an epoch do not count for the next one."""
    recipe = resolve("lenet5-fake", ["training.epochs=3", "training.checkpoint_interval_steps=2"])
    ticking = Ticking()
    trained = train(
        recipe,
        load(recipe.data, recipe.geometry, None)[0],
        device=torch.device("cpu"),
        checkpoint_path=tmp_path / "checkpoint.pt",
        display=ticking,
        interrupts=Interrupts(),
        clock=lambda: ticking.now_s,
    )
    assert len({record.seconds for record in trained.history}) == 1
    assert trained.history[0].seconds == (ticking.now_s - 3000) / 3


def run_until(folder: Path, overrides: tuple[str, ...], last_step: int | None) -> int:
    """Train until a step is reported, then kill the process; return the first reported step."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        steps = []
        for line in process.stdout:
            steps.append(int(line))
            if steps[-1] == last_step:
                process.kill()
                break
    assert process.returncode == (0 if last_step is None else -9)
    return steps[0]


@pytest.mark.parametrize("overrides", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_killed_training_goes_on_bit_for_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Killed at two random steps, the run ends with the same weights and losses."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    assert run_until(unbroken, overrides, None) == 1
    stops = sorted(random.sample(range(4, 48), 2))
    firsts = [run_until(broken, overrides, stop) for stop in (*stops, None)]
    assert (broken / "learnt.bin").read_bytes() == (unbroken / "learnt.bin").read_bytes(), (
        f"killed at {stops}"
    )
    assert firsts[-1] > 1, "it went on from a checkpoint and did not begin again"


Train = Callable[..., TrainResult]


@pytest.fixture
def dataset(fake_recipe: FakeRecipe) -> Dataset:
    """Fake data."""
    recipe = fake_recipe()
    return load(recipe.data, recipe.geometry, None)[0]


@pytest.fixture
def run(tmp_path: Path, dataset: Dataset, display: Display) -> Train:
    """Train by a recipe in this test's directory."""

    def call(recipe: Recipe, data: Dataset = dataset, interrupts: Interrupts | None = None) -> TrainResult:
        return train(
            recipe,
            data,
            device=torch.device("cpu"),
            checkpoint_path=tmp_path / "checkpoint.pt",
            display=display,
            interrupts=interrupts or Interrupts(),
        )

    return call


def test_early_stopping_restores_the_best_weights(run: Train, fake_recipe: FakeRecipe) -> None:
    """Patience ends the run; the returned network has the lowest validation loss of the history."""
    recipe = fake_recipe(
        "training.epochs=60",
        "training.patience=2",
        "training.learning_rate=2e-2",
        "training.schedule=constant",
    )
    trained = run(recipe)
    losses = [record.validation_loss for record in trained.history]
    assert len(losses) < 60
    assert len(losses) == trained.best_epoch + 2
    assert losses[trained.best_epoch - 1] == min(losses)
    again = run(recipe)  # from the checkpoint of the finished run
    assert trained.earlier_seconds == 0
    assert again.earlier_seconds == pytest.approx(sum(each.seconds for each in trained.history), rel=0.1)
    assert all(
        torch.equal(value, again.network.state_dict()[name])
        for name, value in trained.network.state_dict().items()
    )


def test_a_nan_loss_ends_the_run(
    run: Train, fake_recipe: FakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the epoch, the step and the learning rate."""

    def build_broken(*arguments: Any) -> Network:
        network = build(*arguments)
        torch.nn.init.constant_(network.head.get_parameter("bias"), float("nan"))
        return network

    monkeypatch.setattr("training.learning.loop.build", build_broken)
    with pytest.raises(
        Diverged,
        match=r"became NaN or infinite in epoch 1, step 1: training\.learning_rate 0\.003 may be too high",
    ):
        run(fake_recipe())


def test_a_checkpoint_of_another_run_is_refused(
    run: Train, dataset: Dataset, fake_recipe: FakeRecipe
) -> None:
    """Other data or another recipe cannot resume from it."""
    run(fake_recipe("training.epochs=1"))
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        run(fake_recipe("training.epochs=2"))
    shorter = replace(dataset, validation=dataset.test)
    with pytest.raises(CheckpointError, match="belongs to another data set"):
        run(fake_recipe("training.epochs=1"), shorter)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a file"])
def test_a_damaged_checkpoint_is_refused(
    run: Train, tmp_path: Path, fake_recipe: FakeRecipe, content: bytes
) -> None:
    """The error names the file, and nothing is unpickled."""
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
        run(fake_recipe())


def test_a_checkpoint_without_accuracies_is_continued(
    run: Train, tmp_path: Path, fake_recipe: FakeRecipe
) -> None:
    """Older versions kept the losses alone: the weights are the same, the broken epoch has no accuracy."""
    whole = run(fake_recipe("training.epochs=2"))
    assert all(0 < (record.train_accuracy or 0) <= 1 for record in whole.history)
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    for record in content["history"]:
        del record["train_accuracy"]
    content["losses"] = content["losses"][:, 0]
    torch.save(content, path)
    again = run(fake_recipe("training.epochs=2"))
    assert [record.train_loss for record in again.history] == [record.train_loss for record in whole.history]
    assert again.history[0].train_accuracy is None
