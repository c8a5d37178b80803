"""metrics.json: everything that was measured in a run, as one value."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from serving.bundle import Calibration, Estimate
from serving.bundle.manifest import Sha256, Strict
from training.data.checks import DataReport
from training.gates import Check
from training.scores import Scores

METRICS_FILE = "metrics.json"


class Metrics(Strict):
    """metrics.json: everything that was measured."""

    model: str
    recipe: Mapping[str, Any]
    recipe_digest: Sha256
    data_digest: Sha256
    data: DataReport
    epochs: int
    best_epoch: int
    training_seconds: float
    machine: str
    framework: str
    parameters: int
    calibration: Calibration
    validation: Estimate = Field(
        description="accuracy on the validation split; a fair one only with training.keep=last"
    )
    test: Scores
    checks: tuple[Check, ...]
    created_at: datetime

    def headline(self) -> dict[str, int | float]:
        """The figures that fit on one line."""
        return {
            **self.test.headline(),
            "validation_accuracy": self.validation.value,
            "validation_accuracy_low": self.validation.low,
            "validation_accuracy_high": self.validation.high,
            "temperature": self.calibration.temperature,
            "epochs": self.epochs,
            "training_seconds": round(self.training_seconds, 2),
        }
