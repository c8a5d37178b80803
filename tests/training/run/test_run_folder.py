"""Run folders: no run overwrites another or mixes with it."""

from pathlib import Path

import pytest

from tests.training.fake_recipe import FakeRecipe
from training.errors import RunFolderConflict
from training.recipe import Recipe
from training.run.run_folder import open_run


def leave_run(path: Path, recipe: Recipe, *, finished: bool) -> None:
    """Write the files of a run."""
    with open_run(path, recipe, resume=False) as (folder, _):
        folder.checkpoint.write_bytes(b"state")
        if finished:
            folder.summary.write_text("{}")


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path, fake_recipe: FakeRecipe) -> None:
    """Without --resume its checkpoint is kept, and the message names both options."""
    leave_run(tmp_path / "run", fake_recipe(), finished=False)
    refused = pytest.raises(
        RunFolderConflict, match=r"unfinished run: continue it with --resume, or choose another --run-dir"
    )
    with refused, open_run(tmp_path / "run", fake_recipe(), resume=False):
        pass
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == b"state"


def test_a_finished_run_is_moved_aside(tmp_path: Path, fake_recipe: FakeRecipe) -> None:
    """The next run starts in an empty folder; the previous one keeps its files under a number."""
    for _ in range(3):
        leave_run(tmp_path / "run", fake_recipe(), finished=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1", "run.2"]
    assert all((path / "checkpoint.pt").exists() for path in tmp_path.iterdir())


def test_resume_names_every_key_that_changed(tmp_path: Path, fake_recipe: FakeRecipe) -> None:
    """A run cannot be resumed with another recipe."""
    leave_run(tmp_path / "run", fake_recipe(), finished=False)
    changed = fake_recipe("training.epochs=9", "network.dropout=0.5")
    with (
        pytest.raises(
            RunFolderConflict, match=r"network\.dropout was None, is 0\.5; training\.epochs was 3, is 9"
        ),
        open_run(tmp_path / "run", changed, resume=True),
    ):
        pass


def test_resume_without_a_run_starts_one(tmp_path: Path, fake_recipe: FakeRecipe) -> None:
    """A job may always be started with --resume."""
    with open_run(tmp_path / "run", fake_recipe(), resume=True) as (folder, message):
        assert folder.recipe.exists()
        assert "starts from the beginning" in message


def test_foreign_files_are_not_touched(tmp_path: Path, fake_recipe: FakeRecipe) -> None:
    """A folder with files that are not from a run is rejected."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(RunFolderConflict, match="files that are not from a run"),
        open_run(tmp_path, fake_recipe(), resume=False),
    ):
        pass


def test_two_processes_cannot_share_a_run(tmp_path: Path, fake_recipe: FakeRecipe) -> None:
    """The second one gets an error that names the folder."""
    with (
        open_run(tmp_path / "run", fake_recipe(), resume=False),
        pytest.raises(RunFolderConflict, match=r"another process is using .*run: wait for it"),
        open_run(tmp_path / "run", fake_recipe(), resume=True),
    ):
        pass
