"""What a version has answered, read from a server's metrics: for operators, beside what its manifest says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.bundle import Manifest
from serving.counted import counted
from serving.metrics.families import MIN_DRIFT_IMAGES, MetricFamilies

Sample = tuple[str, frozenset[tuple[str, str]]]  # name, labels


@dataclass(frozen=True, slots=True)
class LiveAnswers:
    """The answers of one version since the server started, of all its processes."""

    images: int
    mean_confidence: float
    label_shares: Mapping[str, float]  # the most frequent first
    test_shares: Mapping[str, float]  # of the same labels, for the test images; empty: no reference
    drift: Mapping[str, float] = field(default_factory=dict)  # labels, confidence -> stability index
    window_images: int = 0  # behind the drift

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "images": self.images,
            "confidence": self.mean_confidence,
            "labels": dict(self.label_shares),
            "test_labels": dict(self.test_shares),
            "drift": dict(self.drift),
            "window_images": self.window_images,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return names and values for humans."""
        if not self.images:
            return [("answered images", "0")]
        drift = [f"{value:.3f} of {name}" for name, value in self.drift.items()]
        unknown = "not known"
        if self.test_shares and self.window_images < MIN_DRIFT_IMAGES:
            unknown += (
                f": {counted(self.window_images, 'recent image')}, at least {MIN_DRIFT_IMAGES} are needed"
            )
        return [
            ("answered images", f"{self.images:,}"),
            ("mean confidence", f"{self.mean_confidence:.2%}"),
            *((f"answered {label}", self._share(label)) for label in self.label_shares),
            ("drift", ", ".join(drift) + f" in {self.window_images:,} images" if drift else unknown),
        ]

    def _share(self, label: str) -> str:
        share = f"{self.label_shares[label]:.2%}"
        return f"{share} (test images: {self.test_shares[label]:.2%})" if label in self.test_shares else share


def live_answers(
    samples: Mapping[Sample, float], model: str, version: int, manifest: Manifest
) -> LiveAnswers:
    """Return what a version has answered, from the samples of a scrape."""
    families = MetricFamilies()
    served = {("model", model), ("version", str(version))}

    def values(name: str, label: str = "model") -> dict[str, float]:
        return {
            dict(labels)[label]: value
            for (found, labels), value in samples.items()
            if found == name and served <= labels
        }

    counts = values(f"{families.predictions.name}_total", "label")
    images = sum(counts.values())
    confidence = values(f"{families.confidence.name}_sum").get(model, 0.0)
    shares = {label: count / images for label, count in sorted(counts.items(), key=lambda each: -each[1])}
    return LiveAnswers(
        images=int(images),
        mean_confidence=confidence / images if images else 0.0,
        label_shares=shares,
        test_shares=_test_shares(manifest, shares),
        drift=values(families.stability_index.name, "distribution"),
        window_images=int(values(families.window_images.name).get(model, 0)),
    )


def _test_shares(manifest: Manifest, shares: Mapping[str, float]) -> dict[str, float]:
    if manifest.reference is None:
        return {}
    predicted = manifest.reference.predicted
    known = dict(zip(manifest.labels, predicted, strict=True))
    return {label: known[label] / sum(predicted) for label in shares if label in known}
