"""A run's whole state on disk: written beside and renamed, read without unpickling code."""

import io
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import CheckpointError
from training.files import replace_file

State = dict[str, Any]  # of plain values and tensors, as torch's state_dict() gives them


@dataclass(slots=True)
class Progress:
    """How far a run has come. Mutable: the loop keeps it up to date."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    epoch_seconds: float = 0.0  # spent on those steps
    best_loss: float = float("inf")
    best_epoch: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything from which training goes on bit for bit."""

    recipe_digest: str
    data_digest: str
    progress: State
    history: list[State]
    losses: Tensor  # (steps,) float32, of the epoch under way
    learner: State
    best_weights: State
    cpu_random: Tensor  # (processes, state) uint8: each process's generator
    cuda_random: Tensor | None


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Replace the file as a whole: a kill at any moment leaves the old one or the new one."""
    buffer = io.BytesIO()
    torch.save({field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}, buffer)
    replace_file(path, buffer.getvalue())


def read(path: Path, *, recipe_digest: str, data_digest: str, processes: int) -> Checkpoint | None:
    """Read a checkpoint of this very run; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or belongs to another recipe, to other data, or to
            another number of processes.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint = Checkpoint(**content)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    for what, found, expected in (
        ("recipe", checkpoint.recipe_digest, recipe_digest),
        ("data", checkpoint.data_digest, data_digest),
    ):
        if found != expected:
            raise CheckpointError(
                f"checkpoint {path} is of other {what}: digest {found[:12]}, this run's is {expected[:12]}"
            )
    if len(checkpoint.cpu_random) != processes:
        raise CheckpointError(
            f"checkpoint {path} is of a run by {len(checkpoint.cpu_random)} processes, "
            f"this one has {processes}: it would not go on bit for bit"
        )
    return checkpoint
