"""How tests make recipes on fake data."""

from typing import Protocol

from training.recipe import Recipe


class FakeRecipe(Protocol):
    """Makes lenet5-fake with overrides."""

    def __call__(self, *overrides: str) -> Recipe:
        """Overrides are those of `--set`."""
