"""Two labels: ROC and precision-recall curves, and the sensitivity at fixed specificities."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from serving.bundle import Estimate
from serving.bundle.measures import wilson_interval
from training.report.blocks import Block, Picture, Row, Table
from training.report.charts import BLUE, RED, SOFT, chart, legend, svg
from training.report.predictions import Predictions

THRESHOLD = 0.5  # the server ranks labels: with two of them, the more probable one wins
_SPECIFICITIES = (0.9, 0.95, 0.99)
_MAX_POINTS = 400  # of a curve

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a threshold on the second label's probability gives on some images."""

    threshold: float
    sensitivity: Estimate
    specificity: Estimate


def positive_scores(predictions: Predictions) -> Floats | None:
    """(N,) the second label's probability; None if there are not two labels, or only one of them occurs."""
    two = len(predictions.labels) == 2  # noqa: PLR2004
    if not two or predictions.probabilities is None or len(np.unique(predictions.truth)) < 2:  # noqa: PLR2004
        return None
    scores: Floats = predictions.probabilities[:, 1]
    return scores


def operating_point(scores: Floats, truth: npt.NDArray[np.int64], threshold: float) -> OperatingPoint:
    """Sensitivity for label 1 and specificity, of scores above a threshold: (N,) each."""
    positive, named = truth == 1, scores > threshold
    return OperatingPoint(
        threshold,
        wilson_interval(int((named & positive).sum()), int(positive.sum())),
        wilson_interval(int((~named & ~positive).sum()), int((~positive).sum())),
    )


def threshold_for(scores: Floats, truth: npt.NDArray[np.int64], specificity: float) -> float:
    """The lowest threshold with at least this specificity: a score of a negative image, or 0."""
    negatives = np.sort(scores[truth == 0])
    below = int(np.ceil(specificity * len(negatives) - 1e-9))  # number of negatives that must not exceed it
    return float(negatives[below - 1]) if below else 0.0


def ranking_blocks(test: Predictions, validation: Predictions | None) -> tuple[Block, ...]:
    """Both curves and the table; nothing unless there are two labels."""
    scores = positive_scores(test)
    if scores is None:
        return ()
    return (
        Row((_draw_roc(test, scores), _draw_precision_recall(test, scores))),
        sensitivity_table(test, scores, validation),
    )


def sensitivity_table(test: Predictions, scores: Floats, validation: Predictions | None) -> Table:
    """Sensitivity and specificity on the test split, at thresholds that the validation split chose."""
    choosing = None if validation is None else positive_scores(validation)
    chooser = validation if validation is not None and choosing is not None else test
    chosen_by = choosing if choosing is not None else scores
    points = [("as served", operating_point(scores, test.truth, THRESHOLD))]
    points += [
        (
            f"specificity {wanted:.0%}",
            operating_point(scores, test.truth, threshold_for(chosen_by, chooser.truth, wanted)),
        )
        for wanted in _SPECIFICITIES
    ]
    how = (
        "The thresholds were chosen on the validation split, and measured on the test split."
        if chooser is not test
        else "The thresholds were chosen on the same test images: the figures are optimistic."
    )
    return Table(
        f"Sensitivity for {test.labels[1]} at fixed specificity",
        ("chosen for", "threshold", "sensitivity", "95 % interval", "specificity", "95 % interval"),
        tuple(
            (
                name,
                f"{point.threshold:.3f}",
                f"{point.sensitivity.value:.1%}",
                f"{point.sensitivity.low:.1%} to {point.sensitivity.high:.1%}",
                f"{point.specificity.value:.1%}",
                f"{point.specificity.low:.1%} to {point.specificity.high:.1%}",
            )
            for name, point in points
        ),
        caption=how,
    )


def _draw_roc(test: Predictions, scores: Floats) -> Picture:
    false_positives, sensitivity, _ = roc_curve(test.truth, scores)
    area = roc_auc_score(test.truth, scores)
    served = operating_point(scores, test.truth, THRESHOLD)
    figure, axes = chart()
    axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle=":")
    kept = _thinned(len(sensitivity))
    axes.plot(100 * false_positives[kept], 100 * sensitivity[kept], color=BLUE, label=f"AUC {area:.4f}")
    axes.plot(
        100 * (1 - served.specificity.value),
        100 * served.sensitivity.value,
        color=RED,
        marker="o",
        linestyle="",
        label=f"as served, threshold {THRESHOLD}",
    )
    axes.set(xlabel="false positives in % of negatives", ylabel="sensitivity in %")
    axes.set(xlim=(-2, 102), ylim=(-2, 102))
    legend(axes, "lower right")
    return Picture(
        "roc",
        f"ROC curve for {test.labels[1]}: AUC {area:.4f}. As served, the sensitivity is "
        f"{served.sensitivity.value:.1%} and the specificity {served.specificity.value:.1%}.",
        svg(figure, "roc"),
        "svg",
        title=f"ROC curve for {test.labels[1]}",
    )


def _draw_precision_recall(test: Predictions, scores: Floats) -> Picture:
    precision, recall, _ = precision_recall_curve(test.truth, scores, drop_intermediate=True)
    average = average_precision_score(test.truth, scores)
    share = float((test.truth == 1).mean())
    named = scores > THRESHOLD
    figure, axes = chart()
    axes.axhline(100 * share, color=SOFT, linewidth=1, linestyle=":")
    kept = _thinned(len(recall))
    axes.plot(100 * recall[kept], 100 * precision[kept], color=BLUE, label=f"average precision {average:.4f}")
    if named.any():
        axes.plot(
            100 * (named & (test.truth == 1)).sum() / (test.truth == 1).sum(),
            100 * (test.truth[named] == 1).mean(),
            color=RED,
            marker="o",
            linestyle="",
            label=f"as served, threshold {THRESHOLD}",
        )
    axes.set(xlabel="recall in %", ylabel="precision in %", xlim=(-2, 102), ylim=(0, 102))
    legend(axes, "lower left")
    return Picture(
        "precision-recall",
        f"Precision over recall for {test.labels[1]}: average precision {average:.4f}; {share:.1%} of the "
        "test images have this label.",
        svg(figure, "precision-recall"),
        "svg",
        title=f"Precision and recall for {test.labels[1]}",
    )


def _thinned(points: int) -> npt.NDArray[np.intp]:
    return np.unique(np.linspace(0, points - 1, _MAX_POINTS).astype(np.intp))
