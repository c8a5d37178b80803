"""An evaluation as a value. Knows no network and no scikit-learn."""

from pydantic import Field

from serving.bundle import Estimate, Evaluation
from serving.bundle.manifest import Fraction, Strict


class LabelScore(Strict):
    """How well one label is told from the others."""

    label: str
    precision: Fraction
    recall: Fraction
    f1: Fraction
    images: int


class Scores(Strict):
    """A whole evaluation; `evaluation` is the part that the manifest holds."""

    evaluation: Evaluation
    labels: tuple[LabelScore, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(
        description="[true label][predicted label] -> images, in the order of `labels`"
    )
    balanced_accuracy: Estimate | None = Field(
        description="mean recall of the labels; of ten images or more of each"
    )
    auc: Estimate | None = Field(description="area under the ROC curve; of two labels only")
    top5: Estimate | None = Field(
        description="the true label is among the five likeliest; of 10 labels or more"
    )

    def headline(self) -> dict[str, int | float]:
        """The figures that fit on one line."""
        others = {"balanced_accuracy": self.balanced_accuracy, "auc": self.auc, "top5": self.top5}
        return {
            "accuracy": self.evaluation.accuracy.value,
            "accuracy_low": self.evaluation.accuracy.low,
            "accuracy_high": self.evaluation.accuracy.high,
            "correct": self.evaluation.correct,
            "images": self.evaluation.images,
            "ece": self.evaluation.ece,
            **{
                f"{name}{end}": value
                for name, estimate in others.items()
                if estimate is not None
                for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
            },
        }
