"""Recipes: everything that determines a run, including the limits for publishing its result."""

from training.recipe.recipe import (
    Recipe,
    known_classes,
    recipe_from_settings,
    resolve,
    resolve_network,
    shipped_names,
)
from training.recipe.sections import (
    AugmentationRecipe,
    ChampionRecipe,
    DataRecipe,
    GateRecipe,
    HeadRecipe,
    NetworkRecipe,
    TrainingRecipe,
    VariantRecipe,
)

__all__ = [
    "AugmentationRecipe",
    "ChampionRecipe",
    "DataRecipe",
    "GateRecipe",
    "HeadRecipe",
    "NetworkRecipe",
    "Recipe",
    "TrainingRecipe",
    "VariantRecipe",
    "known_classes",
    "recipe_from_settings",
    "resolve",
    "resolve_network",
    "shipped_names",
]
