"""Valid published versions without torch or ONNX: the repository accepts any bytes as a network."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import (
    MODEL_FILE,
    Bundle,
    Calibration,
    Description,
    Estimate,
    Evaluation,
    Geometry,
    Golden,
    Provenance,
    Repository,
    write_golden,
)
from tests.serving.bundle.publishing import Publish, Write

LABELS = ("cat", "dog", "søl")
GOLDEN_IMAGES = 4


@pytest.fixture
def description() -> Description:
    """The version's description."""
    return Description(
        labels=LABELS,
        geometry=Geometry(height=6, width=5, channels=3),
        embedding_size=8,
        calibration=Calibration(temperature=1.25, ece_before=0.1, ece_after=0.02),
        evaluation=Evaluation(
            images=10, correct=9, accuracy=Estimate(value=0.9, low=0.6, high=0.98), ece=0.03
        ),
        provenance=Provenance(
            recipe="by-hand",
            recipe_digest="0" * 64,
            data_digest="f" * 64,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            framework="none 1.0",
            parameters=7,
        ),
    )


@pytest.fixture
def golden() -> Golden:
    """Golden examples that match the description."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (GOLDEN_IMAGES, 6, 5, 3), np.uint8)  # (G, H, W, C)
    probabilities = generator.dirichlet(np.ones(len(LABELS)), GOLDEN_IMAGES).astype(np.float32)  # (G, K)
    return Golden(images, probabilities)


@pytest.fixture
def write(description: Description, golden: Golden) -> Write:
    """Fill a version's folder as a publisher does: a network, golden examples and a report."""

    def fill(folder: Path) -> Description:
        (folder / MODEL_FILE).write_bytes(b"\x08\x0a a network " * 20)
        write_golden(golden, folder)
        (folder / "report").mkdir()
        (folder / "report" / "metrics.json").write_text('{"accuracy": 0.9}\n')
        return description

    return fill


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository that does not exist yet."""
    return Repository(tmp_path / "repository")


@pytest.fixture
def publish(repository: Repository, write: Write) -> Publish:
    """Publish the next valid version."""

    def publish_version(model: str = "animals") -> Bundle:
        return repository.publish(model, write)

    return publish_version
