"""Reads recipes and overrides: everything that determines a run. Does not import torch.

A recipe file contains only what differs from the defaults.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from serving.bundle import Geometry
from serving.bundle.manifest import NAME_ALLOWED, NAME_PATTERN, Strict
from serving.limited_files import why_unreadable
from serving.text_files import read_text
from serving.validation_errors import describe, matching
from training.errors import RecipeError
from training.recipe.backbone_names import BACKBONES, IMAGENET_CLASSES
from training.recipe.sections import (
    LOGITS,
    AugmentationRecipe,
    ChampionRecipe,
    DataRecipe,
    GateRecipe,
    HeadRecipe,
    NetworkRecipe,
    OwnNetwork,
    ReportRecipe,
    TrainingRecipe,
    VariantRecipe,
)

# Black background: padding and shifts extend the background of a handwritten digit.
_GEOMETRY = Geometry(height=28, width=28, channels=1, background=0)

# Height, width, channels of networks for other images than digits.
_NATIVE_SHAPES = {
    "alexnet": (32, 32, 3),
    "allconv": (32, 32, 3),
    "fast": (32, 32, 3),
    "pneumonia": (128, 128, 3),
}

# Settings added after results were recorded, with their defaults, which do not change digests.
_ADDED_LATER: dict[str, object] = {
    "variants.max_fp16_range": 0.25,
    "gates.min_skill": 0.1,
    "network.head_hidden": [],
}
_WITHOUT_EFFECT = ("report.", "champion.")  # settings of these sections never change a digest

_FOLDER = resources.files("training.recipe") / "recipes"


class Recipe(Strict):
    """A validated recipe."""

    name: Annotated[str, matching(NAME_PATTERN, NAME_ALLOWED)]
    summary: str = ""
    stated: str | None = Field(default=None, description="the result that this recipe claims")
    baseline: str | None = Field(default=None, description="the recipe that this one claims to improve on")
    tuned_on_test: str | None = Field(
        default=None,
        min_length=1,
        description="the settings that were chosen by results on the test images; those are optimistic",
    )
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
    champion: ChampionRecipe = ChampionRecipe()
    variants: VariantRecipe = VariantRecipe()
    report: ReportRecipe = ReportRecipe()

    @model_validator(mode="after")
    def _views_need_training(self) -> Self:
        if self.network.views != 1 and self.method != "train":
            raise ValueError(
                f"network.views must be 1 with method {self.method}, got {self.network.views}: "
                "remove it, or set method to train"
            )
        return self

    @model_validator(mode="after")
    def _hidden_layers_need_training(self) -> Self:
        if self.network.head_hidden and self.method != "train":
            raise ValueError(
                f"network.head_hidden applies to method train only, the method is {self.method}: remove it"
            )
        return self

    @model_validator(mode="after")
    def _logits_need_a_backbone(self) -> Self:
        if self.head.layer == LOGITS and self.network.name not in BACKBONES:
            raise ValueError(
                f"head.layer=logits needs a torchvision backbone, {self.network.name} is not one: "
                "use embedding"
            )
        return self

    @model_validator(mode="after")
    def _head_settings_need_few_shot(self) -> Self:
        changed = self.head.model_dump(exclude_defaults=True)
        if changed and self.method != "few-shot":
            raise ValueError(
                f"head.{next(iter(changed))} applies to method few-shot only, the method is {self.method}: "
                "remove it"
            )
        return self

    @property
    def validation_chose_epoch(self) -> bool:
        """Whether validation images chose an epoch, which makes the accuracy on them optimistic."""
        training = self.training
        epochs = training.epochs if training.keep == "best" else 0
        return self.method == "train" and max(epochs, training.head_epochs) > 1

    def settings(self) -> dict[str, Any]:
        """Return dotted key -> plain value, for everything that determines the result of a run."""
        texts = {"summary": True, "stated": True, "baseline": True, "tuned_on_test": True}
        without_effect = {"data": {"memory_limit_gib"}, "training": {"cuda_graphs"}}
        nested = self.model_dump(mode="json", exclude={**texts, **without_effect})
        return dict(_flatten(nested))

    def digest(self) -> str:
        """Return the SHA-256, in hex, of the settings as canonical JSON.

        Settings that are off (0) or have the default of `_ADDED_LATER` do not count, so that a new setting
        does not change the digests of existing recipes.
        """
        counted = {
            key: value
            for key, value in self.settings().items()
            if value not in (0, _ADDED_LATER.get(key, 0)) and not key.startswith(_WITHOUT_EFFECT)
        }
        canonical = json.dumps(counted, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def shipped_names() -> list[str]:
    """Return the sorted names of the shipped recipes."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml")
    )


def resolve(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_path: a shipped recipe's name, or the path of a .toml file.
        overrides: `section.key=value`, with the value as TOML or a bare word; the last one wins.

    Raises:
        RecipeError: the recipe does not exist or is invalid; names the key, the value and the limit.
    """
    values: dict[str, Any] = {"name": Path(name_or_path).stem, **_read(name_or_path)}
    for override in overrides:
        _apply_override(override, values)
    if isinstance(geometry := values.get("geometry", {}), dict):
        values["geometry"] = {**_GEOMETRY.model_dump(), **geometry}
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"recipe {name_or_path}: {describe(error, Recipe)}") from error


def recipe_from_settings(settings: object, where: str) -> Recipe:
    """The recipe of a run, from its `settings`.

    Args:
        settings: dotted key -> plain value, as read from a file.
        where: the file that has them, for messages.

    Raises:
        RecipeError: a key or a value is not of this version of Lenserve.
    """
    if not isinstance(settings, Mapping):
        raise RecipeError(f"recipe in {where}: must be keys with values, got {type(settings).__name__}")
    values: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise RecipeError(f"recipe in {where}: {section!r} has both a value and keys")
        target[last] = value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"recipe in {where}: {describe(error, Recipe)}") from error


def resolve_network(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Like `resolve`, but also accept a network's name: a recipe with it and its usual image size.

    Raises:
        RecipeError: `name` is neither a recipe nor a network, or an override is invalid.
    """
    if name in shipped_names() or name.endswith(".toml"):
        return resolve(name, overrides)
    if name in BACKBONES:
        return resolve("transfer", [f"network.name={name}", "network.train_from=all", *overrides])
    if name not in get_args(OwnNetwork):
        own = ", ".join(get_args(OwnNetwork))
        raise RecipeError(
            f"{_unknown_recipe(name)}; networks are {own}, and torchvision's backbones such as resnet18"
        )
    height, width, channels = _NATIVE_SHAPES.get(name, _GEOMETRY.shape)
    made_for = [f"network.name={name}", f"geometry.height={height}", f"geometry.width={width}"]
    return resolve(
        "lenet5-fake", [*made_for, f"geometry.channels={channels}", "data.fake_classes=10", *overrides]
    )


def known_classes(recipe: Recipe) -> int | None:
    """Return the number of labels, if the recipe alone determines it."""
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
            text = read_text(Path(name_or_path))
        except OSError as error:
            raise RecipeError(f"recipe {name_or_path} cannot be read: {why_unreadable(error)}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {name_or_path} is not UTF-8 text") from error
    else:
        raise RecipeError(_unknown_recipe(name_or_path))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"recipe {name_or_path} is nested too deeply: remove brackets") from error


def _unknown_recipe(name: str) -> str:
    nearest = difflib.get_close_matches(name, shipped_names(), n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"recipes are {', '.join(shipped_names())}"
    return f"unknown recipe {name!r}: {hint} (or give the path of a .toml file)"


def _apply_override(override: str, values: dict[str, Any]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"invalid override {override!r}: use section.key=value")
    try:
        override.encode()
    except UnicodeEncodeError as error:
        shown = override.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise RecipeError(f"the override {shown} is not UTF-8: rename the file that it names") from error
    *sections, last = key.strip().split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"unknown key {key.strip()!r}: {section!r} is not a section")
    target[last] = _parse_value(text.strip())


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text  # a bare word: data.source=digits


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
