"""What the shipped recipes gave when they were run: measured.json beside them, written by `run --record`."""

from datetime import date
from pathlib import Path

from pydantic import Field, RootModel

from serving.bundle import Estimate
from serving.bundle.manifest import Sha256, Strict
from training.files import replace_file

_FILE = Path(__file__).parent / "recipes" / "measured.json"


class Measured(Strict):
    """One run of a recipe as it is shipped."""

    recipe_digest: Sha256
    accuracy: Estimate
    images: int = Field(ge=1)
    seconds: float = Field(description="of the whole run, publishing included")
    machine: str
    framework: str
    date: date


class _All(RootModel[dict[str, Measured]]):
    """measured.json."""


def read_measured(path: Path = _FILE) -> dict[str, Measured]:
    """Recipe -> result."""
    return _All.model_validate_json(path.read_bytes()).root if path.exists() else {}


def record(recipe: str, measured: Measured, path: Path = _FILE) -> None:
    """Replace one recipe's result."""
    results = dict(sorted({**read_measured(path), recipe: measured}.items()))
    replace_file(path, _All(results).model_dump_json(indent=2).encode() + b"\n")
