"""Extends a finished run: a longer one continues from its last weights, and it moves aside, unchanged.

The new folder begins with copies of the checkpoints, so that the rest is a resume. It is written beside the
old one under a hidden name, and the two are renamed last: after a kill, --resume finds one or the other.
"""

import shutil
from pathlib import Path

from pydantic import Field

from serving.bundle.manifest import Sha256, Strict
from serving.bundle.staging import sync
from serving.counted import counted
from training.atomic_files import replace_file
from training.recipe import Recipe
from training.recorded_files import read_recorded
from training.run.run_folder import RunFolder, free_name, locked, read_recipe
from training.run.summary import RunSummary


class Extension(Strict):
    """continued.json: the finished run that this one continues."""

    run: str = Field(description="path of its folder")
    recipe_digest: Sha256
    epochs: int = Field(description="epochs that it had trained")
    version: int | None = Field(description="that it published; None: a gate failed")


def read_extension(folder: RunFolder) -> Extension | None:
    """Read which run this one continues; None if it began from its first step."""
    if not folder.extension.exists():
        return None
    return read_recorded(folder.extension, Extension, "move the run folder away, and train without --resume")


def complete_extension(path: Path) -> None:
    """Finish an extension that was killed between its two renames; remove one that was killed before."""
    staging = RunFolder(_staging(path))
    if not path.exists() and staging.recipe.exists():
        staging.path.rename(path)
        sync(path.parent)
    else:
        shutil.rmtree(staging.path, ignore_errors=True)


def extend_finished(path: Path, recipe: Recipe) -> str:
    """Extend the finished run in a folder, for which `is_shorter` holds.

    Returns: a line that says what was done.

    Raises:
        RunFolderConflict: another process uses the folder, or its recipe cannot be read.
    """
    with locked(path):
        return _extend(RunFolder(path), recipe)


def is_shorter(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether a folder has a finished run of this recipe with fewer epochs."""
    if not (folder.summary.exists() and folder.has_checkpoint):
        return False
    earlier = read_recipe(folder)
    epochs = earlier.training.epochs
    as_short = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": epochs})})
    return recipe.training.epochs > epochs and as_short.settings() == earlier.settings()


def _extend(folder: RunFolder, recipe: Recipe) -> str:
    aside = free_name(folder.path)
    summary = read_recorded(
        folder.summary, RunSummary, "move the run folder away, and train without --resume"
    )
    extension = Extension(
        run=str(aside),
        recipe_digest=read_recipe(folder).digest(),
        epochs=int(summary.metrics["epochs"]),
        version=summary.version,
    )
    staging = RunFolder(_staging(folder.path))
    staging.path.mkdir()
    for copied, original in (
        (staging.checkpoint, folder.checkpoint),
        (staging.head_checkpoint, folder.head_checkpoint),
    ):
        if original.exists():
            replace_file(copied, original.read_bytes())
    replace_file(staging.extension, extension.model_dump_json(indent=2).encode() + b"\n")
    replace_file(staging.recipe, recipe.model_dump_json(indent=2).encode() + b"\n")  # last: it is complete
    folder.path.rename(aside)
    staging.path.rename(folder.path)
    sync(folder.path.parent)
    return (
        f"the finished run was moved to {aside}; training continues from its last weights, after "
        f"{counted(extension.epochs, 'epoch')}, at the learning rates that a run of "
        f"{recipe.training.epochs} has there"
    )


def _staging(path: Path) -> Path:
    return path.with_name(f".{path.name}.extension")
