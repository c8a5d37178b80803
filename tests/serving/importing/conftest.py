"""Labels, images and settings for tests of importing."""

from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Repository
from serving.bundle.images import Pixels
from tests.serving.importing.foreign_files import CLASSES, SIDE


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository that does not exist yet."""
    return Repository(tmp_path / "repository")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """One label in each line, for five classes."""
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    return path


@pytest.fixture
def images() -> Pixels:
    """(7, H, W, 3) uint8: other images than those that an import runs."""
    return np.random.default_rng(99).integers(0, 256, (7, SIDE, SIDE, 3), np.uint8)
