"""Accuracy by number of examples, as a value. Independent of scikit-learn."""

from pydantic import Field

from serving.bundle.manifest import Fraction, Strict


class CurvePoint(Strict):
    """Test accuracy of heads fitted on a number of training images per label."""

    per_label: int | None = Field(description="training images per label; null: all of them")
    draws: int = Field(ge=1, description="number of random draws of the training images")
    mean: Fraction
    low: Fraction = Field(
        description="95 % interval of the mean, for other draws and test images; of a single draw, Wilson's"
    )
    high: Fraction
    worst: Fraction = Field(description="lowest accuracy of a draw")
    best: Fraction
    test_images: int | None = Field(
        default=None,
        ge=1,
        description="the interval covers their chance; None: an older one, which covers only that of draws",
    )

    def examples(self) -> str:
        """Return the number of images per label, or "all"."""
        return "all" if self.per_label is None else str(self.per_label)
