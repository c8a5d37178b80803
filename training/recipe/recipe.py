"""A recipe: everything that decides what a run learns and when its result is good enough. Knows no torch.

A recipe file says only what differs from the defaults written here.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from serving.bundle import Geometry
from serving.bundle.manifest import NAME_PATTERN, Strict
from training.errors import RecipeError
from training.recipe.backbone_names import BACKBONES, IMAGENET_CLASSES
from training.recipe.sections import (
    AugmentationRecipe,
    DataRecipe,
    GateRecipe,
    HeadRecipe,
    NetworkRecipe,
    OwnNetwork,
    TrainingRecipe,
    VariantRecipe,
)

# Dark background: padding and shifts bring in what surrounds a handwritten digit.
_GEOMETRY = Geometry(height=28, width=28, channels=1, background=0)

# Of those networks whose usual images are not digits: height, width, channels.
_NATIVE_SHAPES = {
    "alexnet": (32, 32, 3),
    "allconv": (32, 32, 3),
    "fast": (32, 32, 3),
    "pneumonia": (128, 128, 3),
}

# Settings that are younger than recorded results, at the values that leave a recipe what it was.
_ADDED_LATER = {"variants.max_fp16_range": 0.25}

_FOLDER = resources.files("training.recipe") / "recipes"


class Recipe(Strict):
    """One frozen value from which a run follows."""

    name: str = Field(pattern=f"^{NAME_PATTERN.pattern}$")
    summary: str = ""
    stated: str | None = Field(default=None, description="the result that this recipe claims")
    baseline: str | None = Field(default=None, description="the recipe whose result this one is to better")
    method: Literal["train", "few-shot", "as-is"] = Field(
        default="train",
        description="train: gradient descent; few-shot: a head fitted on frozen features; "
        "as-is: a pretrained backbone with its own 1,000 classes",
    )
    data: DataRecipe
    geometry: Geometry = _GEOMETRY
    network: NetworkRecipe = NetworkRecipe()
    head: HeadRecipe = HeadRecipe()
    augmentation: AugmentationRecipe = AugmentationRecipe()
    training: TrainingRecipe = TrainingRecipe()
    gates: GateRecipe = GateRecipe()
    variants: VariantRecipe = VariantRecipe()

    @model_validator(mode="after")
    def _views_need_training(self) -> Self:
        if self.network.views != 1 and self.method != "train":
            raise ValueError(f"network.views is for method train, of {self.method} it must be 1")
        return self

    @model_validator(mode="after")
    def _head_settings_need_few_shot(self) -> Self:
        changed = self.head.model_dump(exclude_defaults=True)
        if changed and self.method != "few-shot":
            raise ValueError(f"head.{next(iter(changed))} is for method few-shot, this is {self.method}")
        return self

    def settings(self) -> dict[str, Any]:
        """All that decides the run, flat: dotted key -> plain value. Prose, memory, launches do not."""
        prose = {"summary": True, "stated": True, "baseline": True}
        how = {"data": {"memory_limit_gib"}, "training": {"cuda_graphs"}}
        nested = self.model_dump(mode="json", exclude={**prose, **how})
        return dict(_flatten(nested))

    def digest(self) -> str:
        """SHA-256 of the settings as canonical JSON, less those that are off or younger than results.

        So a setting that is new, and that nobody asks for, leaves all recipes what they were.
        """
        counted = {
            key: value for key, value in self.settings().items() if value not in (0, _ADDED_LATER.get(key, 0))
        }
        canonical = json.dumps(counted, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def shipped_names() -> list[str]:
    """Names of the recipes that come with this package, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml")
    )


def resolve(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_path: a shipped recipe's name, or the path of a .toml file.
        overrides: `section.key=value`, the value as TOML or as a bare word; the last one wins.

    Raises:
        RecipeError: there is no such recipe, or it is wrong; names the key, the value and the bound.
    """
    values: dict[str, Any] = {"name": Path(name_or_path).stem, **_read(name_or_path)}
    for override in overrides:
        _apply_override(override, values)
    if isinstance(geometry := values.get("geometry", {}), dict):
        values["geometry"] = {**_GEOMETRY.model_dump(), **geometry}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_describe(dict(problem)) for problem in error.errors(include_url=False))
        raise RecipeError(f"recipe {name_or_path}: {problems}") from error


def resolve_network(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """As `resolve`; and a network's name gives a recipe with that network and the images it is made for.

    Raises:
        RecipeError: it is neither.
    """
    if name in shipped_names() or name.endswith(".toml"):
        return resolve(name, overrides)
    if name in BACKBONES:
        return resolve("transfer", [f"network.name={name}", "network.train_from=all", *overrides])
    if name not in get_args(OwnNetwork):
        own = ", ".join(get_args(OwnNetwork))
        raise RecipeError(f"{_unknown_recipe(name)}; networks are {own}, and torchvision's, resnet18 say")
    height, width, channels = _NATIVE_SHAPES.get(name, _GEOMETRY.shape)
    made_for = [f"network.name={name}", f"geometry.height={height}", f"geometry.width={width}"]
    return resolve(
        "lenet5-fake", [*made_for, f"geometry.channels={channels}", "data.fake_classes=10", *overrides]
    )


def known_classes(recipe: Recipe) -> int | None:
    """How many labels the data have, where their source alone says it."""
    if recipe.data.source == "imagenet":
        return IMAGENET_CLASSES
    if recipe.network.name == "pneumonia":
        return 2
    if recipe.data.source in ("npz", "folder"):
        return len(recipe.data.labels) or None
    return recipe.data.fake_classes if recipe.data.source == "fake" else 10


def _read(name_or_path: str) -> dict[str, Any]:
    if name_or_path in shipped_names():
        text = (_FOLDER / f"{name_or_path}.toml").read_text(encoding="utf-8")
    elif name_or_path.endswith(".toml"):
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name_or_path} cannot be read: {error}") from error
    else:
        raise RecipeError(_unknown_recipe(name_or_path))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not TOML: {error}") from error


def _unknown_recipe(name: str) -> str:
    nearest = difflib.get_close_matches(name, shipped_names(), n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(shipped_names())}"
    return f"there is no recipe {name!r}: {hint} (or give the path of a .toml file)"


def _apply_override(override: str, values: dict[str, Any]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    *sections, last = key.strip().split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"there is no key {key.strip()!r}: {section!r} is not a section")
    target[last] = _parse_value(text.strip())


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word: data.source=digits


def _describe(problem: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"there is no key {key!r}, did you mean {_nearest_key(key)!r}?"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "value_error":  # a sentence of our own, which names what it is about
        return str(problem["ctx"]["error"])
    return f"{key}: {problem['msg'].lower()}, got {problem['input']!r}"


def _nearest_key(key: str) -> str:
    known = list(_dotted_keys(Recipe))
    last = key.rpartition(".")[2]
    same_name = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    return (same_name or difflib.get_close_matches(key, known, n=1, cutoff=0))[0]


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
