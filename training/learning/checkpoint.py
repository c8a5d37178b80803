"""Checkpoints: the complete state of a run, written atomically and read without unpickling code."""

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.atomic_files import RESUME, replace_file
from training.errors import CheckpointError

State = dict[str, Any]  # plain values and tensors, as from torch's state_dict()


@dataclass(slots=True)
class Progress:
    """How far a run has come; updated by the training loop."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    epoch_seconds: float = 0.0  # time of those steps
    best_loss: float = float("inf")
    best_epoch: int = 0
    finished: bool = False
    extended_at: int = 0  # epochs of a shorter run that this one continues; patience begins there


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything needed to resume training bit for bit."""

    recipe_digest: str
    data_digest: str
    progress: State
    history: list[State]
    losses: Tensor  # (steps, 2) float32, loss and accuracy in the current epoch; (steps,) in older files
    learner: State
    best_weights: State
    cpu_random: Tensor  # (processes, state) uint8: generator state of each process
    cuda_random: Tensor | None


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint atomically: a kill at any moment leaves the old or the new file."""
    buffer = io.BytesIO()
    torch.save({field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}, buffer)
    replace_file(path, buffer.getvalue(), RESUME)


def read(
    path: Path, *, recipe_digest: str, data_digest: str, processes: int, extends: str | None = None
) -> Checkpoint | None:
    """Read the checkpoint of this run; None if the file does not exist.

    Args:
        path: the file.
        recipe_digest: of this run's recipe.
        data_digest: of this run's data.
        processes: number of processes of this run.
        extends: digest of another recipe whose checkpoint is valid too.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another recipe, data set or number of
            processes.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**content)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file makes torch raise anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the file is damaged"
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from error
    for what, found, expected in (
        ("recipe", checkpoint.recipe_digest, recipe_digest),
        ("data set", checkpoint.data_digest, data_digest),
    ):
        if found != expected and not (what == "recipe" and found == extends):
            raise CheckpointError(
                f"checkpoint {path} belongs to another {what}: digest {found[:12]}, this run's is "
                f"{expected[:12]}. Choose another --run-dir"
            )
    if len(checkpoint.cpu_random) != processes:
        raise CheckpointError(
            f"checkpoint {path} belongs to a run of {len(checkpoint.cpu_random)} processes, this run has "
            f"{processes}: resume with the same number, since the result would differ"
        )
    return checkpoint
