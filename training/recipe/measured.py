"""What the shipped recipes gave when they were run: measured.json beside them, written by `run --record`."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import Field, RootModel

from serving.bundle import Estimate, Pretrained
from serving.bundle.manifest import Sha256, Strict
from serving.errors import UsageError
from training.few_shot.curve import CurvePoint
from training.files import replace_file
from training.recipe import Recipe, resolve, shipped_names

_FILE = Path(__file__).parent / "recipes" / "measured.json"

_WEIGHTS = "network.weights"
_RANDOM = "random"


class MeasuredResult(Strict):
    """One run of a recipe as it is shipped. What its evaluation does not have is none."""

    recipe_digest: Sha256 = Field(description="of the shipped recipe, wherever this machine kept the weights")
    accuracy: Estimate
    balanced_accuracy: Estimate | None = None
    auc: Estimate | None = Field(default=None, description="area under the ROC curve")
    top5: Estimate | None = Field(default=None, description="the true label is among the five likeliest")
    validation: Estimate | None = Field(default=None, description="accuracy on the validation split")
    few_shot: tuple[CurvePoint, ...] = ()
    images: int = Field(ge=1, description="of the test split")
    pretrained: Pretrained | None = None
    seconds: float = Field(description="of the whole run, publishing included")
    machine: str
    framework: str
    kernels: str | None = Field(default=None, description="fast or reproducible; none: it was not recorded")
    date: date


class _All(RootModel[dict[str, MeasuredResult]]):
    """measured.json."""


def shipped_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """The shipped recipe of which a run with these overrides is a run.

    Only network.weights=FILE is taken: it says where this machine keeps pretrained weights. Which they were
    is recorded with the result.

    Raises:
        UsageError: it is none, or an override makes it another recipe.
    """
    others = [each for each in overrides if each.partition("=")[0].strip() != _WEIGHTS]
    if others or name not in shipped_names():
        raise UsageError(
            "--record keeps the result of a shipped recipe as it is: it takes no file, and no --set but "
            f"{_WEIGHTS}=FILE; got {', '.join(others) or name}"
        )
    shipped = resolve(name)
    if overrides and _RANDOM in (shipped.network.weights, resolve(name, overrides).network.weights):
        raise UsageError(f"--record takes --set {_WEIGHTS}=FILE only for pretrained weights, not random ones")
    return shipped


def read_measured(path: Path = _FILE) -> dict[str, MeasuredResult]:
    """Recipe -> result."""
    return _All.model_validate_json(path.read_bytes()).root if path.exists() else {}


def record(recipe: str, measured: MeasuredResult, path: Path = _FILE) -> None:
    """Replace one recipe's result."""
    results = dict(sorted({**read_measured(path), recipe: measured}.items()))
    written = _All(results).model_dump_json(indent=2, exclude_defaults=True)
    replace_file(path, written.encode() + b"\n")
