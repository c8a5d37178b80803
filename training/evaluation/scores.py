"""The scores of an evaluation as a value. Independent of networks and scikit-learn."""

from pydantic import Field

from serving.bundle import Estimate, Evaluation
from serving.bundle.manifest import Fraction, Strict


class LabelScore(Strict):
    """Precision, recall and F1 of one label, each 0..1."""

    label: str
    precision: Fraction
    recall: Fraction
    f1: Fraction
    images: int


class Scores(Strict):
    """All scores of an evaluation; `evaluation` is the part for the manifest."""

    evaluation: Evaluation
    labels: tuple[LabelScore, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(
        description="[true label][predicted label] -> images, in the order of `labels`"
    )
    balanced_accuracy: Estimate | None = Field(
        description="mean recall of the labels; none if a label has fewer than ten images"
    )
    auc: Estimate | None = Field(description="area under the ROC curve; two labels only")
    ece_debiased: Fraction | None = Field(
        default=None,
        description="ECE minus its expectation for a perfectly calibrated network on as many images; "
        "none: not recorded by older versions",
    )
    negative_log_likelihood: float | None = Field(
        default=None, description="mean, in nats; none: not recorded by older versions"
    )
    brier: float | None = Field(
        default=None, description="mean Brier score, 0..2; none: not recorded by older versions"
    )
    top5: Estimate | None = Field(
        description="the true label is among the five most probable; from 10 labels on"
    )

    def headline(self) -> dict[str, int | float]:
        """Return the main figures by name, each interval as `_low` and `_high`."""
        others = {"balanced_accuracy": self.balanced_accuracy, "auc": self.auc, "top5": self.top5}
        return {
            "accuracy": self.evaluation.accuracy.value,
            "accuracy_low": self.evaluation.accuracy.low,
            "accuracy_high": self.evaluation.accuracy.high,
            "correct": self.evaluation.correct,
            "images": self.evaluation.images,
            "ece": self.evaluation.ece,
            **{
                name: value
                for name in ("ece_debiased", "negative_log_likelihood", "brier")
                if (value := getattr(self, name)) is not None
            },
            **{
                f"{name}{end}": value
                for name, estimate in others.items()
                if estimate is not None
                for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
            },
        }
