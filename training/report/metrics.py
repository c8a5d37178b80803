"""metrics.json: everything that was measured in a run, as one value."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from serving.bundle import Calibration, Estimate, Pretrained
from serving.bundle.manifest import Sha256, Strict
from training.data.checks import DataReport
from training.evaluation.gates import Check
from training.evaluation.scores import Scores
from training.export.variant_report import VariantReport
from training.few_shot.curve import CurvePoint
from training.recipe import Recipe
from training.recipe.measured import MeasuredResult

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
    earlier_seconds: float = Field(
        default=0.0, description="of training, by processes before the one that finished a resumed run"
    )
    machine: str
    framework: str
    kernels: str | None = Field(
        default=None, description="fast or reproducible; none: a run before there was a choice"
    )
    parameters: int
    pretrained: Pretrained | None = None
    few_shot: tuple[CurvePoint, ...] = ()
    calibration: Calibration
    validation: Estimate | None = Field(
        default=None, description="accuracy on the validation split; a fair one only with training.keep=last"
    )
    test: Scores
    checks: tuple[Check, ...]
    variants: tuple[VariantReport, ...] = ()
    created_at: datetime

    def headline(self) -> dict[str, int | float]:
        """The figures that fit on one line."""
        validation = self.validation
        of_validation = validation and {
            "validation_accuracy": validation.value,
            "validation_accuracy_low": validation.low,
            "validation_accuracy_high": validation.high,
        }
        return {
            **self.test.headline(),
            **(of_validation or {}),
            "temperature": self.calibration.temperature,
            "epochs": self.epochs,
            "training_seconds": round(self.training_seconds, 2),
        }

    def as_measured(self, shipped: Recipe, seconds: float) -> MeasuredResult:
        """What is kept of this run as the result of a recipe.

        Args:
            shipped: the recipe of which it was a run; its digest counts, not that of the run's own settings.
            seconds: of the process that finished the run, publishing included.
        """
        return MeasuredResult(
            recipe_digest=shipped.digest(),
            accuracy=self.test.evaluation.accuracy,
            balanced_accuracy=self.test.balanced_accuracy,
            auc=self.test.auc,
            top5=self.test.top5,
            validation=self.validation,
            few_shot=self.few_shot,
            images=self.test.evaluation.images,
            pretrained=self.pretrained,
            seconds=round(seconds + self.earlier_seconds, 1),
            machine=self.machine,
            framework=self.framework,
            kernels=self.kernels,
            date=self.created_at.date(),
        )
