"""A run's folder: files, lock, and the rules for starting and resuming."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from serving.validation_errors import describe
from training.atomic_files import replace_file
from training.errors import RunFolderConflict
from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths in a run folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; a folder with this file is a run folder."""
        return self.path / "recipe.json"

    @property
    def checkpoint(self) -> Path:
        """The state of training."""
        return self.path / "checkpoint.pt"

    @property
    def head_checkpoint(self) -> Path:
        """The state of the epochs that train only a backbone's head."""
        return self.path / "head-checkpoint.pt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether training can be resumed."""
        return self.checkpoint.exists() or self.head_checkpoint.exists()

    @property
    def model(self) -> Path:
        """The exported ONNX file."""
        return self.path / "model.onnx"

    @property
    def report(self) -> Path:
        """The report, also kept if the version was not published."""
        return self.path / "report"

    @property
    def extension(self) -> Path:
        """Which finished run this one continues; the file exists only if it does."""
        return self.path / "continued.json"

    @property
    def intent(self) -> Path:
        """What the run is about to publish, written before it publishes."""
        return self.path / "publishing.json"

    @property
    def summary(self) -> Path:
        """The outcome; the file exists once the run has finished."""
        return self.path / "summary.json"


@contextmanager
def open_run(path: Path, recipe: Recipe, *, resume: bool) -> Iterator[tuple[RunFolder, str]]:
    """Lock a run's folder, ready to start or to resume.

    1. The folder has files that are not from a run, or another process uses it: error.
    2. A finished run, without resume: it is moved to <path>.1, .2, ...
    3. An unfinished run, without resume: error.
    4. With resume: continues if the recipe is the same; starts if there is no checkpoint.

    Yields: the folder, and a message about what was done; empty if nothing was done.

    Raises:
        RunFolderConflict: the run cannot start here; the message says why and what to do.
    """
    folder = RunFolder(path)
    message = ""
    try:
        _check_foreign_files(folder)
        if folder.summary.exists() and not resume:
            with locked(path):
                message = f"the finished run in {path} was moved to {path.rename(free_name(path))}"
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderConflict(
            f"{path} cannot be written: {error.strerror}: choose another --run-dir"
        ) from error
    with locked(path):
        if resume:
            message = _check_resumable(folder, recipe)
        elif folder.has_checkpoint:
            raise RunFolderConflict(
                f"{path} has an unfinished run: continue it with --resume, or choose another --run-dir"
            )
        content = recipe.model_dump_json(indent=2).encode() + b"\n"
        replace_file(folder.recipe, content, "choose another --run-dir")
        yield folder, message


def _check_foreign_files(folder: RunFolder) -> None:
    if folder.path.exists() and not folder.path.is_dir():
        raise RunFolderConflict(f"{folder.path} is not a directory: choose another --run-dir")
    if not folder.path.is_dir() or folder.recipe.exists():
        return
    # Hidden files may be temporary files of a killed run.
    if any(not entry.name.startswith(".") for entry in folder.path.iterdir()):
        raise RunFolderConflict(f"{folder.path} has files that are not from a run: choose another --run-dir")


def free_name(path: Path) -> Path:
    """The first of <path>.1, <path>.2, ... that does not exist, for a run that is moved aside."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside


def _check_resumable(folder: RunFolder, recipe: Recipe) -> str:
    if not (folder.has_checkpoint or folder.intent.exists() or folder.summary.exists()):
        return f"{folder.path} has no checkpoint yet: the run starts from the beginning"
    earlier, current = read_recipe(folder).settings(), recipe.settings()
    changed = [
        f"{key} was {earlier.get(key)!r}, is {current.get(key)!r}"
        for key in sorted(earlier.keys() | current.keys())
        if earlier.get(key) != current.get(key)
    ]
    if changed:
        raise RunFolderConflict(
            f"{folder.path} has a run of another recipe, which --resume cannot continue: {'; '.join(changed)}"
            " (a finished run can be extended, by a larger training.epochs alone)"
        )
    return f"continuing the run in {folder.path}"


def read_recipe(folder: RunFolder) -> Recipe:
    """Read the recipe of a run.

    Raises:
        RunFolderConflict: the file is missing or invalid.
    """
    try:
        return Recipe.model_validate_json(folder.recipe.read_bytes())
    except OSError as error:
        raise RunFolderConflict(f"{folder.recipe} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise RunFolderConflict(f"{folder.recipe} is invalid: {describe(error, Recipe)}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel releases when the process dies.

    Raises:
        RunFolderConflict: another process holds it.
    """
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
        raise RunFolderConflict(
            f"another process is using {path}: wait for it, or choose another --run-dir"
        ) from error
