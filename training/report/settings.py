"""The settings of a run: those that differ from the defaults, and all of them."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from training.recipe import DataRecipe, Recipe
from training.report.blocks import Block, Fold, Prose, Table


def settings_blocks(settings: Mapping[str, Any]) -> tuple[Block, ...]:
    """A table of the settings that differ from the defaults, and all settings folded."""
    defaults = default_settings(settings)
    changed = {key: value for key, value in settings.items() if defaults.get(key) != value and key != "name"}
    blocks: list[Block] = []
    if changed:
        rows = tuple((key, _text(value), _text(defaults.get(key))) for key, value in changed.items())
        blocks.append(
            Table(
                "Settings that differ from the defaults",
                ("setting", "value", "default"),
                rows,
                frozenset({0, 1, 2}),
            )
        )
    else:
        blocks.append(Prose(("All settings have their defaults.",)))
    every = tuple((key, _text(value)) for key, value in settings.items())
    blocks.append(Fold("All settings", (Table("", ("setting", "value"), every, frozenset({0, 1})),)))
    return tuple(blocks)


def default_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that sets nothing but its source."""
    try:
        source = DataRecipe(source=settings["data.source"])
    except (KeyError, ValidationError):
        return {}
    return Recipe(name=str(settings.get("name", "recipe")), data=source).settings()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
