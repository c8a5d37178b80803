"""How far the probabilities can be trusted: reliability before and after calibration, risk and coverage."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from serving.bundle.measures import ECE_BINS
from training.report.blocks import Picture, Table
from training.report.charts import BLUE, GREEN, PALE, SOFT, chart, legend, svg
from training.report.predictions import Predictions

_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)
_MAX_POINTS = 400  # of a curve

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Mean confidence and accuracy of each bin of confidence that has images."""

    confidence: Floats
    accuracy: Floats
    images: npt.NDArray[np.int64]


def reliability(confidence: Floats, correct: npt.NDArray[np.bool_]) -> Reliability:
    """Sort predictions into the bins of the calibration error. Both arguments are (N,)."""
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)  # (N,)
    images = np.bincount(bins, minlength=ECE_BINS)
    used = images > 0
    means = [np.bincount(bins, weights, ECE_BINS)[used] / images[used] for weights in (confidence, correct)]
    return Reliability(means[0], means[1], images[used])


def uncalibrated_confidence(predictions: Predictions, temperature: float) -> Floats | None:
    """(N,) the confidence without temperature scaling; None if not all probabilities are known."""
    if predictions.probabilities is None:
        return None
    least = np.finfo(np.float32).tiny
    logits = temperature * np.log(np.maximum(predictions.probabilities.astype(np.float64), least))
    confidence: Floats = softmax(log_softmax(logits, axis=1), axis=1).max(axis=1)
    return confidence


def draw_reliability(predictions: Predictions, temperature: float, ece: float) -> Picture:
    """The reliability diagram, and how many images each bin has."""
    figure, axes = chart()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":", label="perfect")
    before = uncalibrated_confidence(predictions, temperature)
    if before is not None and temperature != 1:
        found = reliability(before, predictions.correct)
        axes.plot(
            found.confidence,
            found.accuracy,
            color=PALE,
            marker="o",
            markersize=3,
            label="before calibration",
        )
    after = reliability(predictions.confidence, predictions.correct)
    axes.plot(
        after.confidence,
        after.accuracy,
        color=BLUE,
        marker="o",
        markersize=4,
        label=f"temperature {temperature:.2f}",
    )
    shares = after.images / after.images.sum()
    axes.bar(after.confidence, 0.25 * shares, width=0.8 / ECE_BINS, color=PALE, alpha=0.4)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.02))
    legend(axes, "upper left")
    return Picture(
        "reliability",
        f"Accuracy by confidence in {ECE_BINS} bins; on the diagonal the network is as often right as it "
        f"says. The calibration error is {ece:.4f}.",
        svg(figure, "reliability"),
        "svg",
        title="Reliability",
        caption=f"Calibration error {ece:.4f} on the test split. The bars show how many images are in each "
        "bin; bins with few of them scatter.",
    )


def risk_coverage(predictions: Predictions) -> tuple[Floats, Floats]:
    """Coverage, ascending, and error rate if only the surest predictions are accepted: (N,) each."""
    order = np.argsort(-predictions.confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(~predictions.correct[order]) / count


def draw_risk_coverage(predictions: Predictions) -> Picture:
    """The error rate over the share of images that are accepted."""
    coverage, risk = risk_coverage(predictions)
    chosen = np.unique(np.linspace(0, len(risk) - 1, _MAX_POINTS).astype(np.intp))
    figure, axes = chart()
    axes.plot(100 * coverage[chosen], 100 * risk[chosen], color=GREEN)
    axes.set(xlabel="accepted images in %, the surest first", ylabel="errors among them in %", xlim=(0, 101))
    axes.set_ylim(bottom=0)
    return Picture(
        "risk-coverage",
        f"Error rate over coverage: {risk[-1]:.2%} if all images are accepted, "
        f"{_risk_at(coverage, risk, 0.9):.2%} if the surest 90 % are.",
        svg(figure, "risk-coverage"),
        "svg",
        title="Risk and coverage",
        caption="How many errors remain if the least sure images are left to a person.",
    )


def risk_table(predictions: Predictions) -> Table:
    """Error rates at a few coverages, with the confidence that reaches each."""
    coverage, risk = risk_coverage(predictions)
    ranked = -np.sort(-predictions.confidence)
    rows = []
    for share in _COVERAGES:
        place = max(0, round(share * len(risk)) - 1)
        rows.append((f"{coverage[place]:.0%}", f"{ranked[place]:.3f}", f"{risk[place]:.2%}"))
    return Table(
        "Errors if only sure predictions are accepted",
        ("accepted", "confidence at least", "errors among them"),
        tuple(rows),
    )


def _risk_at(coverage: Floats, risk: Floats, share: float) -> float:
    return float(risk[max(0, round(share * len(coverage)) - 1)])
