"""What became of an INT8 or FP16 form of a version, as a value. Knows no ONNX."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from serving.bundle import Estimate, Variant
from serving.bundle.manifest import Fraction, Strict


class VariantReport(Strict):
    """Made, measured, and kept or left out."""

    precision: Literal["int8", "fp16"]
    kept: bool
    reason: str
    accuracy: Estimate | None = None
    same_labels: Fraction | None = None
    variant: Variant | None = Field(default=None, description="for the manifest, where it is kept")
    speedup: Mapping[str, float] = Field(
        default_factory=dict,
        description="batch -> how many times less CPU it takes than the exported file, on this machine",
    )

    def summary_line(self) -> str:
        """One line."""
        if self.accuracy is None or self.same_labels is None:
            return f"left out: {self.reason}"
        cost = ", ".join(f"{1 / times:.2f} of the CPU at {batch}" for batch, times in self.speedup.items())
        figures = f"{self.accuracy.value:.2%} right, {self.same_labels:.2%} the same labels, {cost}"
        if not self.kept:
            return f"left out, {self.reason} ({figures})"
        return f"kept, {self.reason}: {figures}" if self.precision == "fp16" else f"kept: {figures}"
