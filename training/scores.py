"""An evaluation as a value. Knows no network and no scikit-learn."""

from pydantic import Field

from serving.bundle import Evaluation
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
    confusion: tuple[tuple[int, ...], ...] = Field(description="[true label][predicted label] -> images")

    def headline(self) -> dict[str, int | float]:
        """The figures that fit on one line."""
        return {
            "accuracy": self.evaluation.accuracy.value,
            "accuracy_low": self.evaluation.accuracy.low,
            "accuracy_high": self.evaluation.accuracy.high,
            "correct": self.evaluation.correct,
            "images": self.evaluation.images,
            "ece": self.evaluation.ece,
        }
