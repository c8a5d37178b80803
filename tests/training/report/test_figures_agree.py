"""Every figure of a report equals what scikit-learn computes from predictions.csv alone."""

import csv
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)

from serving.bundle import Bundle
from tests.training.report.random_predictions import random_predictions
from training.evaluation.evaluate import score
from training.report.mistakes import confusions, suspects, varied_mistakes
from training.report.predictions import Predictions, write_predictions
from training.report.quadrants import SURE, quadrants
from training.report.ranking import operating_point, positive_scores, threshold_for
from training.report.reliability import reliability, risk_coverage, uncalibrated_confidence

Rows = list[dict[str, str]]


def rows_of(path: Path, split: str = "test") -> Rows:
    """The rows of one split, as anybody would read them."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def probabilities_of(rows: Rows, labels: list[str]) -> np.ndarray:
    """(N, K) float64."""
    return np.array([[float(row[f"p({label})"]) for label in labels] for row in rows])


def test_a_published_report_has_the_scores_of_its_predictions(digits_bundle: Bundle) -> None:
    """Accuracy, balanced accuracy, top 5, every label, the confusion matrix, NLL, Brier and ECE."""
    folder = digits_bundle.folder / "report"
    rows, labels = rows_of(folder / "predictions.csv"), list(digits_bundle.manifest.labels)
    stated = json.loads((folder / "metrics.json").read_text())
    test, truth, predicted = stated["test"], [row["true"] for row in rows], [row["predicted"] for row in rows]
    probabilities = probabilities_of(rows, labels)
    numbers = [labels.index(label) for label in truth]

    assert len(rows) == test["evaluation"]["images"]
    assert accuracy_score(truth, predicted) == test["evaluation"]["accuracy"]["value"]
    assert sum(row["correct"] == "1" for row in rows) == test["evaluation"]["correct"]
    assert balanced_accuracy_score(truth, predicted) == pytest.approx(test["balanced_accuracy"]["value"])
    assert top_k_accuracy_score(numbers, probabilities, k=5) == pytest.approx(test["top5"]["value"])
    assert confusion_matrix(truth, predicted, labels=labels).tolist() == test["confusion"]
    columns = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    for place, entry in enumerate(test["labels"]):
        found = [float(column[place]) for column in columns]
        assert [entry[key] for key in ("precision", "recall", "f1", "images")] == pytest.approx(found)
    rescaled = probabilities / probabilities.sum(axis=1, keepdims=True)  # float32 sums are 1 within 1e-7
    assert log_loss(numbers, rescaled) == pytest.approx(test["negative_log_likelihood"], rel=1e-5)
    assert brier_score_loss(numbers, rescaled, labels=range(10)) == pytest.approx(test["brier"], rel=1e-5)
    assert _ece(rows) == pytest.approx(test["evaluation"]["ece"], abs=1e-6)
    assert {row["model_sha256"] for row in rows} == {digits_bundle.manifest.files["model.onnx"].sha256[:16]}
    validation = rows_of(folder / "predictions.csv", "validation")
    assert np.mean([row["correct"] == "1" for row in validation]) == stated["validation"]["value"]


def _ece(rows: Rows) -> float:
    """Expected calibration error over 15 bins, from the columns alone."""
    confidence = np.array([float(row["confidence"]) for row in rows])
    right = np.array([row["correct"] == "1" for row in rows])
    edges = np.linspace(0, 1, 16)
    gaps = 0.0
    for low, high in pairwise(edges):
        members = (confidence > low) & (confidence <= high)
        gaps += abs(right[members].sum() - confidence[members].sum())
    return gaps / len(rows)


@pytest.fixture(scope="module")
def two() -> Predictions:
    """400 images of two labels."""
    return random_predictions(400, ("negative", "positive"), skill=1.2)


def test_the_curves_of_two_labels(two: Predictions, tmp_path: Path) -> None:
    """AUC, the point as served, and the sensitivity at a fixed specificity, from the file."""
    write_predictions(tmp_path / "p.csv", {"test": two}, "0" * 64)
    rows = rows_of(tmp_path / "p.csv")
    scores = np.array([float(row["p(positive)"]) for row in rows])
    truth = np.array([row["true"] == "positive" for row in rows])
    ours = score(np.asarray(two.probabilities), two.truth, two.labels)
    assert ours.auc is not None
    assert ours.auc.value == pytest.approx(roc_auc_score(truth, scores))
    found = positive_scores(two)
    assert found is not None
    assert average_precision_score(two.truth, found) == pytest.approx(average_precision_score(truth, scores))
    served = operating_point(found, two.truth, 0.5)
    named = np.array([row["predicted"] == "positive" for row in rows])
    assert served.sensitivity.value == pytest.approx(named[truth].mean())
    assert served.specificity.value == pytest.approx((~named[~truth]).mean())
    false_positives, sensitivity, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    for wanted in (0.8, 0.95, 0.99):
        threshold = threshold_for(found, two.truth, wanted)
        point = operating_point(found, two.truth, threshold)
        best = sensitivity[1 - false_positives >= wanted].max()
        assert point.specificity.value >= wanted
        assert point.sensitivity.value == pytest.approx(best), thresholds


def test_quadrants_pairs_and_suspects(two: Predictions) -> None:
    """Numbers and mean losses of the four quadrants, the confusions, and the labels to check."""
    rows = list(
        zip(
            (two.labels[label] for label in two.truth),
            (two.labels[label] for label in two.predicted),
            two.confidence.tolist(),
            two.true_probabilities.tolist(),
            strict=True,
        )
    )
    found = {quadrant.name: quadrant for quadrant in quadrants(two)}
    assert sum(len(quadrant.members) for quadrant in found.values()) == len(rows)
    losses = [-np.log(share) for true, predicted, sure, share in rows if true != predicted and sure >= SURE]
    assert len(found["Wrong and sure"].members) == len(losses)
    assert found["Wrong and sure"].mean_loss == pytest.approx(np.mean(losses))
    right = [-np.log(share) for true, predicted, sure, share in rows if true == predicted and sure < SURE]
    assert found["Right and unsure"].mean_loss == pytest.approx(np.mean(right))
    counted = Counter((true, predicted) for true, predicted, _, _ in rows if true != predicted)
    ours = {(two.labels[true], two.labels[other]): count for true, other, count in confusions(two)}
    assert ours == dict(counted)
    assert len(suspects(two)) == len(losses)
    mistakes = varied_mistakes(two)
    assert len(set(mistakes)) == 24
    kinds = [(int(two.truth[index]), int(two.predicted[index])) for index in mistakes[:2]]
    assert set(kinds) == {(0, 1), (1, 0)}


def test_reliability_and_risk(two: Predictions) -> None:
    """The bins give the calibration error; the risk of accepting all images is the error rate."""
    found = reliability(two.confidence, two.correct)
    error = float((abs(found.confidence - found.accuracy) * found.images).sum() / len(two))
    stated = score(np.asarray(two.probabilities), two.truth, two.labels).evaluation
    assert error == pytest.approx(stated.ece, abs=1e-6)
    coverage, risk = risk_coverage(two)
    assert (coverage[-1], risk[-1]) == (1.0, pytest.approx(1 - stated.accuracy.value))
    surest = np.argsort(-two.confidence, kind="stable")[: len(two) // 2]
    assert risk[len(two) // 2 - 1] == pytest.approx((~two.correct[surest]).mean())
    before = uncalibrated_confidence(two, 1.0)
    assert before is not None
    assert before == pytest.approx(two.confidence, abs=1e-6)
    probabilities = np.asarray(two.probabilities, np.float64)
    raised = probabilities**2 / (probabilities**2).sum(
        axis=1, keepdims=True
    )  # divided by temperature 2 before
    found_before = uncalibrated_confidence(two, 2.0)
    assert found_before == pytest.approx(raised.max(axis=1), abs=1e-6)
