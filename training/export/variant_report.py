"""The result of making an INT8 or FP16 variant, as a value. Independent of ONNX."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from serving.bundle import Estimate, Variant
from serving.bundle.manifest import Fraction, Strict


class VariantReport(Strict):
    """A variant's scores, and whether and why it was kept or rejected."""

    precision: Literal["int8", "fp16"]
    kept: bool
    reason: str
    accuracy: Estimate | None = None
    same_labels: Fraction | None = None
    variant: Variant | None = Field(default=None, description="manifest entry, if it is kept")
    speedup: Mapping[str, float] = Field(
        default_factory=dict,
        description="batch size -> CPU time of the exported file divided by the variant's, on this machine",
    )

    def summary_line(self) -> str:
        """Return a summary in one line."""
        if self.accuracy is None or self.same_labels is None:
            return f"rejected: {self.reason}"
        cost = ", ".join(
            f"{1 / speedup:.2f} x CPU time at {batch}" for batch, speedup in self.speedup.items()
        )
        scores = f"test accuracy {self.accuracy.value:.2%}, {self.same_labels:.2%} equal labels, {cost}"
        if not self.kept:
            return f"rejected: {self.reason}; {scores}"
        return f"kept, {self.reason}: {scores}" if self.precision == "fp16" else f"kept: {scores}"
