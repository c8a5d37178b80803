"""Training by two processes gives the same result as by one, and can be resumed after a kill."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import distributed, nn

from serving.errors import UsageError
from tests.training.fake_recipe import FakeRecipe
from training.devices.process_group import (
    SINGLE_PROCESS,
    ProcessGroup,
    from_torchrun,
    join,
    reject_shared_gpus,
)
from training.devices.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from training.errors import CheckpointError
from training.learning.checkpoint import read
from training.run.display import Display
from training.run.job import Job, train_and_evaluate

# Plain descent: Adam divides the gradient of a bias before batch norm, which is nothing but rounding, by its
# own size, and so makes two sums in another order drift apart.
SETTINGS = (
    "training.optimizer=sgd",
    "training.learning_rate=0.05",
    "gates.max_ece=0.9",
    "training.epochs=5",
    "training.patience=5",
    "training.checkpoint_interval_steps=2",
    "training.averaging=0.9",
    "network.batch_norm=true",
    "augmentation.max_shift_px=2",
    "augmentation.mixup=0.4",
)


def start(folder: Path, processes: int, *options: str, name: str = "run") -> subprocess.Popen[str]:
    """Start the real command, with torchrun for more than one process."""
    runner = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", *(runner if processes > 1 else []), "training", "run", "lenet5-fake"]
    where = ["--repository", str(folder / "repository"), "--run-dir", str(folder / name), "--json"]
    return subprocess.Popen(
        [*command, *where, *overrides, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a successful run; return its summary, a single line on stdout."""
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    (line,) = stdout.splitlines()
    return json.loads(line)


def losses(folder: Path) -> np.ndarray:
    """(epochs, 2): training and validation loss."""
    history = json.loads((folder / "report" / "history.json").read_text())
    return np.array([(record["train_loss"], record["validation_loss"]) for record in history])


def wait_for_an_epoch(process: subprocess.Popen[str]) -> None:
    """Read stderr until the first epoch is reported."""
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch   1" in line:
            return


def kill_one(process: subprocess.Popen[str]) -> None:
    """SIGKILL one of torchrun's processes after the first epoch."""
    wait_for_an_epoch(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def weights(folder: Path) -> list[torch.Tensor]:
    """The best weights of a run's last checkpoint."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return list(state["best_weights"].values())


def test_two_processes_learn_what_one_does_and_go_on_when_killed(tmp_path: Path) -> None:
    """Same losses within rounding, one version each; after a kill the job resumes bit for bit."""
    alone, pair = start(tmp_path, 1, name="alone"), start(tmp_path, 2, name="pair")
    published = [finish(alone), finish(pair)]
    assert sorted(result["version"] for result in published) == [1, 2]
    one, two = losses(tmp_path / "alone"), losses(tmp_path / "pair")
    assert np.allclose(one[:2], two[:2], rtol=2e-3, atol=2e-4)
    assert np.allclose(one, two, rtol=5e-2, atol=2e-3), "rounding grows with the steps, but not much"

    broken = start(tmp_path, 2, name="broken")
    kill_one(broken)
    stdout, _ = broken.communicate(timeout=60)
    assert broken.returncode != 0
    assert stdout == ""
    finish(start(tmp_path, 2, "--resume", name="broken"))
    for unbroken, resumed in zip(weights(tmp_path / "pair"), weights(tmp_path / "broken"), strict=True):
        assert torch.equal(unbroken, resumed)
    assert len(list((tmp_path / "repository" / "lenet5-fake").glob("[0-9]*"))) == 3


def write_shades(root: Path) -> None:
    """Write class directories of noise, one darker than the other."""
    random = np.random.default_rng(0)
    for name, brightest in (("dark", 120), ("light", 256)):
        (root / name).mkdir(parents=True)
        for number in range(100):
            noise = random.integers(0, brightest, (28, 28), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"{number:03}.png")


def test_two_processes_that_stream_learn_what_they_learn_from_memory(tmp_path: Path) -> None:
    """One process decodes, both read its file: the same weights to the bit."""
    write_shades(tmp_path / "data")
    source = ("--data-root", str(tmp_path / "data"), "--set", "data.source=folder")
    # One epoch is too short for the gates on accuracy, which are not what this test is about.
    short = ("training.epochs=1", "gates.min_skill=0", "gates.allow_zero_recall=true")
    options = [*source, *(word for setting in short for word in ("--set", setting))]
    finish(start(tmp_path, 2, *options, "--set", "data.memory_limit_gib=0", name="streamed"))
    assert len(list((tmp_path / ".cache").glob("decoded-*.npy"))) == 1
    finish(start(tmp_path, 2, *options, name="memory"))
    for streamed, whole in zip(weights(tmp_path / "streamed"), weights(tmp_path / "memory"), strict=True):
        assert torch.equal(streamed, whole)


def test_sigterm_ends_all_processes_after_the_same_step(tmp_path: Path) -> None:
    """Both processes report the same epoch and step, and the checkpoint is of that step."""
    process = start(tmp_path, 2, "--set", "training.epochs=500", "--set", "training.patience=500")
    wait_for_an_epoch(process)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    said = [line for line in stderr.splitlines() if "saved in epoch" in line]
    assert len(said) == 2, stderr
    assert said[0].partition("saved")[2] == said[1].partition("saved")[2]
    progress = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"]
    assert f"saved in epoch {progress['epoch'] + 1} after step {progress['step']};" in said[0]


def test_another_number_of_processes_cannot_go_on(tmp_path: Path) -> None:
    """The error names both numbers."""
    torch.save({"cpu_random": torch.zeros(2, 8, dtype=torch.uint8), **DIGESTS, **REST}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="belongs to a run of 2 processes, this run has 1"):
        read(tmp_path / "c.pt", processes=1, **DIGESTS)


DIGESTS = {"recipe_digest": "a", "data_digest": "b"}
REST = dict.fromkeys(("progress", "history", "losses", "learner", "best_weights", "cuda_random"))


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 4), (7, 1)])
def test_rows_are_divided_without_gap_or_overlap(count: int, size: int) -> None:
    """Each row belongs to exactly one process."""
    taken = [row for rank in range(size) for row in range(count)[ProcessGroup(rank, size).rows(count)]]
    assert taken == list(range(count))


def test_alone_nothing_is_sent() -> None:
    """Collectives of a single process return its own values."""
    values = torch.tensor([1.0, 2.0])
    assert SINGLE_PROCESS.sum_(values) is values
    assert torch.equal(SINGLE_PROCESS.gather(values), values[None])
    SINGLE_PROCESS.barrier()


CPU = torch.device("cpu")


def test_one_process_can_make_a_real_group() -> None:
    """Collectives go through torch.distributed and return the same values; then the group is gone."""
    with join(SINGLE_PROCESS, CPU, even_if_single=True) as group:
        assert distributed.get_backend() == "gloo"
        values = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
        group.sum_many_(values)
        assert [value.tolist() for value in values] == [[1.0, 2.0], [[3.0]]]
        assert group.gather(values[0]).tolist() == [[1.0, 2.0]]
        group.barrier()
    assert not distributed.is_initialized()


def test_one_process_alone_joins_nothing() -> None:
    """A single process connects only with even_if_single."""
    with join(SINGLE_PROCESS, CPU) as group:
        assert group is SINGLE_PROCESS
        assert not distributed.is_initialized()


class Phases(Display):
    """Records in which phases the group was connected."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.joined: dict[str, bool] = {}

    def phase(self, name: str) -> None:
        """Record a phase."""
        self.joined[name] = distributed.is_initialized()


def test_the_group_ends_before_the_export(job: Job, fake_recipe: FakeRecipe) -> None:
    """The main process exports alone; with NCCL the others would wait for it."""
    phases = Phases()
    with join(SINGLE_PROCESS, CPU, even_if_single=True) as group:
        summary = train_and_evaluate(
            fake_recipe("network.batch_norm=true", "training.epochs=1", "gates.max_ece=0.9"),
            replace(job, group=group, display=phases),
        )
    assert phases.joined == {"data": True, "training": True, "export and proof": False}
    assert summary.verdict == "published"


def test_a_real_group_of_one_learns_what_one_process_does(
    job: Job, tmp_path: Path, fake_recipe: FakeRecipe
) -> None:
    """The same losses within rounding, with batch norm's statistics going through the group."""
    recipe = fake_recipe("network.batch_norm=true", "gates.max_ece=0.9", "training.epochs=2")
    train_and_evaluate(recipe, replace(job, run_dir=tmp_path / "alone"))
    with join(SINGLE_PROCESS, CPU, even_if_single=True) as group:
        train_and_evaluate(recipe, replace(job, run_dir=tmp_path / "group", group=group))
    assert np.allclose(losses(tmp_path / "alone"), losses(tmp_path / "group"), rtol=1e-2, atol=1e-3)


def test_an_error_ends_the_group_too() -> None:
    """Another group can be created afterwards."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), join(SINGLE_PROCESS, CPU, even_if_single=True):
            raise ZeroDivisionError
    assert not distributed.is_initialized()


def test_two_processes_that_share_a_gpu_are_refused() -> None:
    """The error names both, and the possible number of processes."""
    identities = torch.zeros(3, 32, dtype=torch.uint8)
    identities[1] = 7
    with pytest.raises(UsageError, match=r"processes 0 and 2 of 3 share a GPU.*at most 2 processes"):
        reject_shared_gpus(identities)
    reject_shared_gpus(identities[:2])


def test_a_place_is_read_from_torchrun_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank is known before connecting, so that the device can be chosen first."""
    for name, value in (("WORLD_SIZE", 4), ("RANK", 3), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert from_torchrun() == ProcessGroup(rank=3, size=4, local_rank=1, local_size=2)
    assert not from_torchrun().connected
    monkeypatch.delenv("RANK")
    with pytest.raises(UsageError, match="WORLD_SIZE is 4, but RANK is not set"):
        from_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert from_torchrun() is SINGLE_PROCESS


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 3)])
def test_a_sync_batch_norm_of_one_process_is_torchs_batch_norm(shape: tuple[int, ...]) -> None:
    """Outputs, gradients and statistics agree, in training and in evaluation."""
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)
    nn.init.uniform_(plain.weight)
    holder = nn.Sequential(type(plain)(5))
    holder[0].load_state_dict(plain.state_dict())
    convert_sync_batch_norm(holder, SINGLE_PROCESS)
    assert isinstance(holder[0], SyncBatchNorm)
    values = torch.randn(shape)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    result, expected = holder(ours), plain(theirs)
    (result**3).sum().backward()
    (expected**3).sum().backward()
    assert torch.allclose(result, expected, atol=1e-5)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-3)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, holder[0].state_dict()[name], atol=1e-5), name
    assert torch.allclose(holder.eval()(values), plain.eval()(values), atol=1e-5)
