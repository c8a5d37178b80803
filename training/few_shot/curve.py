"""The accuracy that so many examples give, as a value. Knows no scikit-learn."""

from pydantic import Field

from serving.bundle.manifest import Fraction, Strict


class CurvePoint(Strict):
    """Accuracy on the test split with so many training images of each label."""

    per_label: int | None = Field(description="training images of each label; none: all that there are")
    draws: int = Field(ge=1, description="random choices of them")
    mean: Fraction
    low: Fraction = Field(description="95 % interval of the mean over the draws; of one draw Wilson's")
    high: Fraction
    worst: Fraction = Field(description="of the draws")
    best: Fraction

    def examples(self) -> str:
        """How many, in a word."""
        return "all" if self.per_label is None else str(self.per_label)
