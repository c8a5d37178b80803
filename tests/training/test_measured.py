"""Measured results beside the recipes."""

from datetime import date
from pathlib import Path

from training.evaluate import wilson
from training.measured import Measured, read_measured, record
from training.recipe import resolve, shipped_names
from training.tables import describe_recipe


def measured(digest: str) -> Measured:
    """Some result."""
    return Measured(
        recipe_digest=digest,
        accuracy=wilson(99, 100),
        images=100,
        seconds=1.5,
        machine="a machine",
        framework="torch",
        date=date(2026, 1, 2),
    )


def test_a_recorded_result_is_read_again_and_replaces_only_its_own(tmp_path: Path) -> None:
    """Other recipes keep their results."""
    path = tmp_path / "measured.json"
    first, second = measured("a" * 64), measured("b" * 64)
    record("one", first, path)
    record("two", first, path)
    record("one", second, path)
    assert read_measured(path) == {"one": second, "two": first}


def test_a_result_of_an_older_recipe_says_so() -> None:
    """A figure counts for the very recipe that gave it."""
    recipe = resolve("lenet5-digits")
    assert describe_recipe(recipe, measured(recipe.digest()))["measured"]["current"]
    assert not describe_recipe(recipe, measured("0" * 64))["measured"]["current"]
    assert describe_recipe(recipe, None)["measured"] is None


def test_shipped_results_belong_to_shipped_recipes() -> None:
    """measured.json speaks of no recipe that is not there."""
    assert set(read_measured()) <= set(shipped_names())
