"""A finished run is extended by a longer one, which continues from its last weights."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.cli import main
from training.errors import RunFolderConflict
from training.learning.checkpoint import State
from training.recipe import Recipe
from training.report.metrics import Metrics
from training.run.extension import complete_extension, extend_finished
from training.run.job import Job, train_and_evaluate
from training.run.run_folder import RunFolder

Recipes = Callable[..., Recipe]

COMMON = ("training.patience=9", "gates.max_ece=1", "gates.min_skill=-1", "gates.allow_zero_recall=true")


def state(folder: Path) -> State:
    """The contents of a checkpoint."""
    found: State = torch.load(folder / "checkpoint.pt", weights_only=True)
    return found


def learned(folder: Path) -> tuple[list[torch.Tensor], list[tuple[float, float, float]]]:
    """The last weights of a run; the losses and the learning rate of each of its epochs."""
    found = state(folder)
    numbers = ("train_loss", "validation_loss", "learning_rate")
    return (
        list(found["learner"]["network"].values()),
        [tuple(record[name] for name in numbers) for record in found["history"]],
    )


def digests(folder: Path) -> dict[str, str]:
    """Path in a folder -> SHA-256 of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_extended_run_learns_what_a_longer_one_would(job: Job, fake_recipe: Recipes) -> None:
    """With a constant rate bit for bit. The old run moves aside unchanged, and the new one names it."""
    constant = (*COMMON, "training.schedule=constant", "augmentation.max_shift_px=2", "network.dropout=0.3")
    short, long = (fake_recipe(*constant, f"training.epochs={epochs}") for epochs in (2, 4))
    train_and_evaluate(short, job)
    before = digests(job.run_dir)
    summary = train_and_evaluate(long, replace(job, resume=True))
    assert (summary.version, summary.metrics["epochs"]) == (2, 4)

    straight = replace(job, run_dir=job.run_dir.with_name("straight"), model="straight")
    train_and_evaluate(long, straight)
    (weights, numbers), (expected, expected_numbers) = learned(job.run_dir), learned(straight.run_dir)
    assert numbers == expected_numbers
    assert all(torch.equal(*pair) for pair in zip(weights, expected, strict=True))

    old = job.run_dir.with_name("run.1")
    assert digests(old) == before
    metrics = Metrics.model_validate_json((job.run_dir / "report" / "metrics.json").read_text())
    assert metrics.continued_from is not None
    assert metrics.continued_from.model_dump() == {
        "run": str(old),
        "recipe_digest": short.digest(),
        "epochs": 2,
        "version": 1,
    }
    assert f"(the first 2 in {old})" in (job.run_dir / "report" / "report.html").read_text()
    manifest = job.repository.read("fake", 2).manifest
    assert manifest.provenance.recipe_digest == long.digest()
    assert manifest.provenance.continued_from == short.digest()
    first = job.repository.read("fake", 1)
    assert first.manifest.provenance.continued_from is None
    assert "continued_from" not in (first.folder / "manifest.json").read_text(), (
        "older servers know no such key"
    )
    assert train_and_evaluate(long, replace(job, resume=True)) == summary


def test_the_schedule_is_that_of_the_longer_run_and_patience_begins_anew(
    job: Job, fake_recipe: Recipes
) -> None:
    """Epochs 2 and 3 have the rates of a run of three; a run that stopped early does not stop at once."""
    cosine = ("gates.max_ece=1", "gates.min_skill=-1", "training.patience=1", "training.keep=best")
    train_and_evaluate(fake_recipe(*cosine, "training.epochs=1"), job)
    found = state(job.run_dir)
    found["progress"].update(best_loss=0.0)  # no later epoch is better
    torch.save(found, job.run_dir / "checkpoint.pt")
    train_and_evaluate(fake_recipe(*cosine, "training.epochs=2"), replace(job, resume=True))
    train_and_evaluate(fake_recipe(*cosine, "training.epochs=3"), replace(job, resume=True))
    rates = [record["learning_rate"] for record in state(job.run_dir)["history"]]
    straight = fake_recipe(*COMMON, "training.epochs=3")
    other = replace(job, run_dir=job.run_dir.with_name("straight"))
    train_and_evaluate(straight, other)
    expected = [record["learning_rate"] for record in state(other.run_dir)["history"]]
    assert rates[1] < expected[1] / 10  # the end of a run of two
    assert rates[2] == expected[2]
    assert state(job.run_dir)["progress"]["extended_at"] == 2


def test_only_a_finished_run_and_only_by_more_epochs(job: Job, fake_recipe: Recipes) -> None:
    """Any other change is refused as before, and the message names the key; fewer epochs are too."""
    train_and_evaluate(fake_recipe(*COMMON, "training.epochs=2"), job)
    again = replace(job, resume=True)
    for changed, named in (
        (("training.epochs=1",), r"training\.epochs was 2, is 1"),
        (
            ("training.epochs=3", "training.seed=1"),
            r"training\.epochs was 2, is 3; training\.seed was 0, is 1",
        ),
        (
            ("training.epochs=3", "network.dropout=0.1"),
            r"network\.dropout was None, is 0\.1; training\.epochs",
        ),
    ):
        with pytest.raises(RunFolderConflict, match=named):
            train_and_evaluate(fake_recipe(*COMMON, *changed), again)
    (job.run_dir / "summary.json").unlink()
    with pytest.raises(
        RunFolderConflict, match=r"training\.epochs was 2, is 3 \(a finished run can be extended"
    ):
        train_and_evaluate(fake_recipe(*COMMON, "training.epochs=3"), again)
    assert not [path for path in job.run_dir.parent.glob("*run*") if path != job.run_dir]


def test_an_extension_killed_between_its_two_renames_is_completed(job: Job, fake_recipe: Recipes) -> None:
    """The old run is aside, the new one has only its hidden name; and one killed before leaves nothing."""
    short, long = (fake_recipe(*COMMON, f"training.epochs={epochs}") for epochs in (1, 2))
    train_and_evaluate(short, job)
    hidden = job.run_dir.with_name(".run.extension")
    hidden.mkdir()
    (hidden / "checkpoint.pt").write_bytes(b"half a copy")
    complete_extension(job.run_dir)
    assert "moved to" in extend_finished(job.run_dir, long)
    job.run_dir.rename(hidden)
    summary = train_and_evaluate(long, replace(job, resume=True))
    assert summary.metrics["epochs"] == 2
    assert not hidden.exists()
    assert json.loads(RunFolder(job.run_dir).extension.read_text())["epochs"] == 1


def test_an_extended_run_is_not_recorded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, job: Job, fake_recipe: Recipes
) -> None:
    """It is not what the shipped recipe gives from its first step; nothing is trained."""
    train_and_evaluate(fake_recipe("training.epochs=1", "gates.max_ece=1"), job)
    (job.run_dir / "recipe.json").write_text(fake_recipe("training.epochs=1").model_dump_json())
    options = ["--run-dir", str(job.run_dir), "--repository", str(tmp_path / "repository")]
    assert main(["run", "lenet5-fake", *options, "--record", "--resume"]) == 2
    assert "continues a shorter one: run without --resume" in capsys.readouterr().err
    assert not job.run_dir.with_name("run.1").exists()
