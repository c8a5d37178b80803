"""A run's folder: what is kept of a run, and the rule that nothing in it is lost or mixed."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from serving.validation_errors import describe
from training.errors import RunFolderConflict
from training.files import replace_file
from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where each thing lies."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; by it a folder is known to be a run's."""
        return self.path / "recipe.json"

    @property
    def checkpoint(self) -> Path:
        """State of the training."""
        return self.path / "checkpoint.pt"

    @property
    def head_checkpoint(self) -> Path:
        """State of the epochs in which only a backbone's head learns."""
        return self.path / "head-checkpoint.pt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something that could be gone on with."""
        return self.checkpoint.exists() or self.head_checkpoint.exists()

    @property
    def model(self) -> Path:
        """The exported file."""
        return self.path / "model.onnx"

    @property
    def report(self) -> Path:
        """The report, kept whether or not the version was published."""
        return self.path / "report"

    @property
    def summary(self) -> Path:
        """How the run ended: there only once it did."""
        return self.path / "summary.json"


@contextmanager
def open_run(path: Path, recipe: Recipe, *, resume: bool) -> Iterator[tuple[RunFolder, str]]:
    """Hold a run's folder, ready to begin or to go on.

    1. Files that no run wrote, or another process at work: refused.
    2. A finished run, without resume: moved aside to <path>.1, .2, ...
    3. An unfinished run, without resume: refused.
    4. With resume: goes on where the recipe is the same; begins where there is no run yet.

    Yields: the folder, and a line that says what was done; empty where there is nothing to say.

    Raises:
        RunFolderConflict: says why and what to do.
    """
    folder = RunFolder(path)
    _check_foreign_files(folder)
    message = ""
    if folder.summary.exists() and not resume:
        with _locked(path):
            message = f"the finished run in {path} was moved to {_move_aside(path)}"
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if resume:
            message = _check_resumable(folder, recipe)
        elif folder.has_checkpoint:
            raise RunFolderConflict(
                f"{path} holds an unfinished run: go on with --resume, or choose another --run-dir"
            )
        replace_file(folder.recipe, recipe.model_dump_json(indent=2).encode() + b"\n")
        yield folder, message


def _check_foreign_files(folder: RunFolder) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise RunFolderConflict(f"{folder.path} is not a directory")
    if not folder.path.is_dir() or folder.recipe.exists():
        return
    # Hidden files may be what a killed run had begun to write.
    if any(not entry.name.startswith(".") for entry in folder.path.iterdir()):
        raise RunFolderConflict(f"{folder.path} holds files that no run wrote: choose another --run-dir")


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(aside)


def _check_resumable(folder: RunFolder, recipe: Recipe) -> str:
    if not folder.has_checkpoint:
        return f"{folder.path} holds no checkpoint yet: the run starts at the beginning"
    try:
        earlier = Recipe.model_validate_json(folder.recipe.read_text(encoding="utf-8")).settings()
    except OSError as error:
        raise RunFolderConflict(f"{folder.recipe} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise RunFolderConflict(f"{folder.recipe} is invalid: {describe(error, Recipe)}") from error
    current = recipe.settings()
    changed = [
        f"{key} was {earlier.get(key)!r}, is {current.get(key)!r}"
        for key in sorted(earlier.keys() | current.keys())
        if earlier.get(key) != current.get(key)
    ]
    if changed:
        raise RunFolderConflict(
            f"{folder.path} holds a run of another recipe, --resume cannot mix them: {'; '.join(changed)}"
        )
    return f"goes on with the run in {folder.path}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel releases when its owner dies."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunFolderConflict(f"another process is at work in {path}") from error
