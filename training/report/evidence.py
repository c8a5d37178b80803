"""Everything that a report is made from, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.data import Dataset
from training.learning.history import EpochRecord
from training.report.metrics import Metrics
from training.report.predictions import Predictions

TEST, VALIDATION, TRAIN = "test", "validation", "train"


@dataclass(frozen=True, slots=True)
class Replaced:
    """The version that a new one replaces, and what it predicts for the same test images."""

    version: int
    accuracy: float  # 0..1, as its manifest states it
    predicted: npt.NDArray[np.int64] | None  # (N,) labels of the new version's test images; None: unknown
    reason: str  # how the predictions were had, or why they are unknown


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is None or empty is left out of the report."""

    metrics: Metrics
    labels: tuple[str, ...]
    geometry: Geometry
    history: tuple[EpochRecord, ...] = ()
    predictions: Mapping[str, Predictions] = field(default_factory=dict)  # by split: test, validation
    dataset: Dataset | None = None
    embedding: npt.NDArray[np.float32] | None = None  # (N, D) of the test images
    examples: Pixels | None = None  # (rows, columns, H, W, C): images and their augmented versions
    model_file: Path | None = None
    version: int | None = None  # of the published bundle; None: refused
    replaced: Replaced | None = None
    machine: str = ""  # that makes the report

    @property
    def test(self) -> Predictions | None:
        """The predictions for the test split."""
        return self.predictions.get(TEST)

    @property
    def shows_images(self) -> bool:
        """Whether images of the data may be part of the report (`report.images`)."""
        return str(self.metrics.recipe.get("report.images", "all")) == "all"

    @property
    def shown(self) -> Dataset | None:
        """The data, if images of them may be shown."""
        return self.dataset if self.shows_images else None
