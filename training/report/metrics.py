"""metrics.json: everything measured in a run, as one value."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from serving.bundle import Calibration, Estimate, Pretrained
from serving.bundle.manifest import Sha256, Strict
from training.champion.result import Challenge
from training.data.checks import DataReport
from training.evaluation.gates import Check
from training.evaluation.scores import Scores
from training.export.variant_report import VariantReport
from training.few_shot.curve import CurvePoint
from training.recipe import Recipe
from training.recipe.measured import MeasuredResult
from training.run.extension import Extension

METRICS_FILE = "metrics.json"


class Metrics(Strict):
    """The contents of metrics.json."""

    model: str
    recipe: Mapping[str, Any]
    recipe_digest: Sha256
    data_digest: Sha256
    data: DataReport
    epochs: int = Field(description="of all stages of training")
    head_epochs: int = Field(
        default=0,
        description="how many of them trained only the head; 0 also if not recorded by older versions",
    )
    best_epoch: int
    training_seconds: float
    earlier_seconds: float = Field(default=0.0, description="training time before a resumed run's last start")
    machine: str
    framework: str
    kernels: str | None = Field(
        default=None, description="fast or reproducible; None: not recorded by older versions"
    )
    continued_from: Extension | None = Field(
        default=None, description="the finished run whose last weights this one began with"
    )
    parameters: int
    pretrained: Pretrained | None = None
    tuned_on_test: str | None = Field(
        default=None, description="the recipe's settings that were chosen by results on the test images"
    )
    few_shot: tuple[CurvePoint, ...] = ()
    calibration: Calibration
    validation: Estimate | None = Field(
        default=None, description="accuracy on the validation split; see `validation_chose_epoch`"
    )
    validation_chose_epoch: bool | None = Field(
        default=None,
        description="whether that split chose the epoch, so that the accuracy on it is optimistic; None: not "
        "recorded by older versions",
    )
    test: Scores
    checks: tuple[Check, ...]
    champion: Challenge | None = Field(
        default=None,
        description="the comparison with the version before; None: a check failed first, or not recorded by "
        "older versions",
    )
    variants: tuple[VariantReport, ...] = ()
    created_at: datetime

    def headline(self) -> dict[str, int | float]:
        """Return the main figures by name, each interval as `_low` and `_high`, true as 1."""
        validation = self.validation
        of_validation = validation and {
            "validation_accuracy": validation.value,
            "validation_accuracy_low": validation.low,
            "validation_accuracy_high": validation.high,
        }
        chose = self.validation_chose_epoch
        chosen = {} if chose is None else {"validation_chose_epoch": int(chose)}
        return {
            **self.test.headline(),
            **(of_validation or {}),
            **(chosen if of_validation else {}),
            "temperature": self.calibration.temperature,
            "epochs": self.epochs,
            "training_seconds": round(self.training_seconds, 2),
        }

    def as_measured(self, shipped: Recipe, seconds: float) -> MeasuredResult:
        """Return the result to record for a shipped recipe.

        Args:
            shipped: recipe whose digest is recorded instead of that of the run's settings.
            seconds: duration of the process that finished the run, including publishing.
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
