"""A run that is killed while it publishes, and resumed, has published once."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Repository
from training.errors import RunFolderConflict
from training.recipe import Recipe
from training.run import job as job_module
from training.run.job import Job, train_and_evaluate
from training.run.summary import RunSummary

OVERRIDES = ("training.epochs=1", "gates.max_ece=1")

# Runs the smoke recipe with --resume, says when it is about to publish, and dies before or after that.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from serving.bundle import Repository
from training.devices.device import choose
from training.recipe import resolve
from training.run import job as job_module
from training.run.display import Display
from training.run.interrupts import Interrupts
from training.run.job import Job, train_and_evaluate

folder, dies = Path(sys.argv[1]), sys.argv[2]
publish = job_module.publish

def publish_and_die(*arguments, **named):
    print("publishing", flush=True)
    if dies == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    published = publish(*arguments, **named)
    if dies == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return published

job_module.publish = publish_and_die
summary = train_and_evaluate(
    resolve("lenet5-fake", sys.argv[3:]),
    Job(
        repository=Repository(folder / "repository"), model="fake", run_dir=folder / "run", data_root=None,
        device=choose("cpu"), display=Display(Console(quiet=True)), interrupts=Interrupts(), resume=True,
    ),
)
"""


def start(folder: Path, dies: str) -> "subprocess.Popen[str]":
    """Start the program."""
    command = [sys.executable, "-c", PROGRAM, str(folder), dies, *OVERRIDES]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def resumed(job: Job) -> Job:
    """The job of the program, in this process."""
    return replace(job, resume=True)


@pytest.mark.parametrize(("dies", "published"), [("before", []), ("after", [1])])
def test_a_run_killed_while_it_publishes_publishes_once(
    job: Job, fake_recipe: Callable[..., Recipe], tmp_path: Path, dies: str, published: list[int]
) -> None:
    """SIGKILL before the version appears, and between the version and the summary."""
    killed = start(tmp_path, dies)
    killed.communicate()
    assert killed.returncode == -9
    assert job.repository.versions("fake") == published
    assert not (tmp_path / "run" / "summary.json").exists()

    recipe = fake_recipe(*OVERRIDES)
    summary = train_and_evaluate(recipe, resumed(job))
    assert job.repository.versions("fake") == [1]
    assert (summary.version, summary.verdict, summary.gate) == (1, "published", "promote")
    assert job.repository.aliases("fake") == {"stable": 1}
    assert summary.path == str(job.repository.folder("fake", 1))
    assert summary.metrics["images"] == job.repository.read("fake", 1).manifest.measured().images
    assert train_and_evaluate(recipe, resumed(job)) == summary


def test_a_run_killed_at_random_while_it_publishes_publishes_once(tmp_path: Path) -> None:
    """Killed up to 0.2 s after it begins to publish."""
    repository = Repository(tmp_path / "repository")
    with start(tmp_path, "never") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "publishing\n"
        time.sleep(np.random.default_rng().uniform(0, 0.2))
        process.kill()
    last = start(tmp_path, "never")
    last.communicate()
    assert last.returncode == 0
    assert repository.versions("fake") == [1]
    summary = RunSummary.model_validate_json((tmp_path / "run" / "summary.json").read_bytes())
    assert summary.version == 1


def test_only_the_version_of_this_run_is_taken_for_it(
    job: Job, fake_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an equal one of another run; wherever the version was published; and for the same recipe only."""
    recipe = fake_recipe(*OVERRIDES)
    train_and_evaluate(recipe, replace(job, run_dir=job.run_dir.with_name("other")))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "_write_summary", die)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(recipe, job)
    monkeypatch.undo()
    assert job.repository.versions("fake") == [1, 2]

    with pytest.raises(RunFolderConflict, match=r"training\.seed was 0, is 1"):
        train_and_evaluate(fake_recipe(*OVERRIDES, "training.seed=1"), resumed(job))
    elsewhere = replace(resumed(job), repository=Repository(job.run_dir / "elsewhere"), model="named")
    summary = train_and_evaluate(recipe, elsewhere)
    assert (summary.model, summary.version) == ("fake", 2)
    assert not elsewhere.repository.root.exists()
    assert job.repository.versions("fake") == [1, 2]
    written = json.loads((job.run_dir / "publishing.json").read_text())
    assert written["repository"] == str(job.repository.root.resolve())
