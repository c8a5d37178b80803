"""The measured results of the shipped recipes, in recipes/measured.json; `run --record` writes them."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import Field, RootModel

from serving.bundle import Estimate, Pretrained
from serving.bundle.manifest import Sha256, Strict
from serving.errors import UsageError
from training.atomic_files import replace_file
from training.few_shot.curve import CurvePoint
from training.recipe import Recipe, resolve, shipped_names

_FILE = Path(__file__).parent / "recipes" / "measured.json"

_WEIGHTS = "network.weights"
_RANDOM = "random"


class MeasuredResult(Strict):
    """The result of one run of a shipped recipe. Missing scores are None."""

    recipe_digest: Sha256 = Field(description="digest of the shipped recipe, without overrides")
    accuracy: Estimate
    balanced_accuracy: Estimate | None = None
    auc: Estimate | None = Field(default=None, description="area under the ROC curve")
    top5: Estimate | None = Field(default=None, description="the true label is among the five most probable")
    validation: Estimate | None = Field(default=None, description="accuracy on the validation split")
    few_shot: tuple[CurvePoint, ...] = ()
    images: int = Field(ge=1, description="digest of the test split")
    pretrained: Pretrained | None = None
    seconds: float = Field(description="duration of the whole run, including publishing")
    machine: str
    framework: str
    kernels: str | None = Field(default=None, description="fast or reproducible; None: not recorded")
    date: date


class _All(RootModel[dict[str, MeasuredResult]]):
    """measured.json."""


def shipped_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """Return the shipped recipe whose result `--record` stores.

    The only permitted override is network.weights=FILE, the path of pretrained weights on this machine; their
    digest is recorded with the result.

    Raises:
        UsageError: `name` is not a shipped recipe, or an override changes it.
    """
    others = [each for each in overrides if each.partition("=")[0].strip() != _WEIGHTS]
    if others or name not in shipped_names():
        raise UsageError(
            "--record needs an unchanged shipped recipe: no .toml file, and no --set except "
            f"{_WEIGHTS}=FILE; got {', '.join(others) or name}"
        )
    shipped = resolve(name)
    if overrides and _RANDOM in (shipped.network.weights, resolve(name, overrides).network.weights):
        raise UsageError(
            f"--record accepts --set {_WEIGHTS}=FILE for pretrained weights only, not for random ones"
        )
    return shipped


def read_measured(path: Path = _FILE) -> dict[str, MeasuredResult]:
    """Return recipe name -> result; empty if the file is missing."""
    return _All.model_validate_json(path.read_bytes()).root if path.exists() else {}


def record(recipe: str, measured: MeasuredResult, path: Path = _FILE) -> None:
    """Replace the result of one recipe in the file."""
    results = dict(sorted({**read_measured(path), recipe: measured}.items()))
    content = _All(results).model_dump_json(indent=2, exclude_defaults=True)
    replace_file(path, content.encode() + b"\n")
