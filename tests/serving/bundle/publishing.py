"""Publishes versions of arbitrary bytes for tests: the repository does not run networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from serving.bundle import Bundle, Description

Write = Callable[[Path], Description]  # fills a version's folder


class Publish(Protocol):
    """Publishes the next version of a model."""

    def __call__(self, model: str = "animals") -> Bundle:
        """Every version has the same files."""
