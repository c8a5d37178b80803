"""Every figure of a report equals what scikit-learn computes from predictions.csv alone."""

import csv
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
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
from training.report.album import Album
from training.report.blocks import Table
from training.report.confusion import confusion_matrix as confusion_table
from training.report.confusion import label_tables
from training.report.mistakes import confused_table, confusions, errors_by_label, suspects, varied_mistakes
from training.report.predictions import Predictions, write_predictions
from training.report.quadrants import SURE, quadrant_blocks, quadrants
from training.report.ranking import operating_point, positive_scores, sensitivity_table, threshold_for
from training.report.reliability import reliability, risk_coverage, risk_table, uncalibrated_confidence
from training.report.sentences import what_it_confuses, what_it_is_good_at

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


def test_intervals_of_auc_and_balanced_accuracy_are_those_of_resampling(
    two: Predictions, tmp_path: Path
) -> None:
    """Both come from formulas; resampling the rows of each label gives the same within a percentage point."""
    write_predictions(tmp_path / "p.csv", {"test": two}, "0" * 64)
    rows = rows_of(tmp_path / "p.csv")
    scores = np.array([float(row["p(positive)"]) for row in rows])
    truth = np.array([row["true"] == "positive" for row in rows])
    right = np.array([row["correct"] == "1" for row in rows])
    of_each = (np.flatnonzero(truth), np.flatnonzero(~truth))
    random = np.random.default_rng(1)
    areas, recalls = [], []
    for _ in range(1000):
        drawn = [random.choice(members, len(members)) for members in of_each]
        both = np.concatenate(drawn)
        areas.append(roc_auc_score(truth[both], scores[both]))
        recalls.append(np.mean([right[members].mean() for members in drawn]))
    ours = score(np.asarray(two.probabilities), two.truth, two.labels)
    for stated, drawn_values in ((ours.auc, areas), (ours.balanced_accuracy, recalls)):
        assert stated is not None
        assert [stated.low, stated.high] == pytest.approx(np.percentile(drawn_values, (2.5, 97.5)), abs=0.01)


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


@pytest.fixture(scope="module")
def four() -> Predictions:
    """600 images of four labels."""
    return random_predictions(600, ("ant", "bee", "cat", "dog"), skill=1.2)


@pytest.fixture(scope="module")
def rows_of_four(four: Predictions, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Their rows in predictions.csv."""
    path = tmp_path_factory.mktemp("four") / "predictions.csv"
    write_predictions(path, {"test": four}, "0" * 64)
    return rows_of(path)


def texts(table: Table) -> list[list[str]]:
    """What a reader sees in each row."""
    return [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]


def interval(count: int, images: int) -> str:
    """Wilson's, by scipy."""
    found = binomtest(count, images).proportion_ci(method="wilson")
    return f"{found.low:.1%} to {found.high:.1%}"


def test_tables_of_errors_say_what_the_file_says(four: Predictions, rows_of_four: Rows) -> None:
    """Errors by label, the most frequent confusions, and the quadrants, as they are written on the page."""
    counted = Counter((row["true"], row["predicted"]) for row in rows_of_four if row["correct"] == "0")
    images = Counter(row["true"] for row in rows_of_four)
    wrong = Counter(row["true"] for row in rows_of_four if row["correct"] == "0")
    shown = {row[0]: row[1:] for row in texts(errors_by_label(four))}
    assert list(shown) == sorted(wrong, key=lambda label: -wrong[label] / images[label])
    for label, (count, errors, share, instead) in shown.items():
        assert [count, errors] == [str(images[label]), str(wrong[label])]
        assert share == f"{wrong[label] / images[label]:.1%}"
        for named in instead.split(", "):
            other, number = named.split(" (")
            assert counted[label, other] == int(number.strip(")"))
    for true, predicted, count, share in texts(confused_table(four, 5)):
        assert counted[true, predicted] == int(count)
        assert share == f"{int(count) / images[true]:.1%}"
    table = next(iter(quadrant_blocks(four, None, Album())))
    assert isinstance(table, Table)
    for name, count, share, loss in texts(table):
        members = [
            row
            for row in rows_of_four
            if (row["correct"] == "1") == name.startswith("Right")
            and (float(row["confidence"]) >= SURE) == name.endswith(" sure")
        ]
        assert int(count) == len(members)
        assert float(share.strip("%")) == pytest.approx(100 * len(members) / 600, abs=0.5)
        losses = [-np.log(float(row[f"p({row['true']})"])) for row in members]
        assert loss == (f"{np.mean(losses):.3f}" if losses else "none")


def test_tables_of_scores_say_what_scikit_learn_says(four: Predictions, rows_of_four: Rows) -> None:
    """Confusion matrix, scores of each label with intervals, errors by coverage, sentences and headline."""
    labels = list(four.labels)
    truth, predicted = ([row[key] for row in rows_of_four] for key in ("true", "predicted"))
    scores = score(np.asarray(four.probabilities), four.truth, four.labels)
    counts = confusion_matrix(truth, predicted, labels=labels)
    shown = confusion_table(scores)
    for row, total, cells in zip(counts, counts.sum(axis=1), shown.cells, strict=True):
        found = [cell.text for cell in cells]
        assert found == [f"{count}\n{count / total:.1%}" if count else "" for count in row]
    columns = precision_recall_fscore_support(truth, predicted, labels=labels)
    (table,) = label_tables(scores)
    assert isinstance(table, Table)
    for label, images, recall, bounds, precision, f1 in texts(table):
        place = labels.index(label)
        expected = [float(column[place]) for column in columns]
        assert [precision, recall, f1] == [f"{expected[0]:.1%}", f"{expected[1]:.1%}", f"{expected[2]:.3f}"]
        assert int(images) == int(expected[3])
        assert bounds == interval(int(counts[place, place]), int(images))
    ranked = sorted(rows_of_four, key=lambda row: -float(row["confidence"]))
    for accepted, least, errors in texts(risk_table(four)):
        kept = ranked[: round(float(accepted.strip("%")) / 100 * len(ranked))]
        assert float(least) == pytest.approx(float(kept[-1]["confidence"]), abs=6e-4)
        assert errors == f"{np.mean([row['correct'] == '0' for row in kept]):.2%}"
    accuracy = accuracy_score(truth, predicted)
    right = sum(row["correct"] == "1" for row in rows_of_four)
    assert what_it_is_good_at(scores).startswith(
        f"It is right on {accuracy:.1%} of 600 test images ({interval(right, 600)})"
    )
    counts[np.diag_indices(4)] = 0
    true, other = np.unravel_index(counts.argmax(), counts.shape)
    named = f"predict {labels[other]} for {labels[true]} ({counts.max()} of {truth.count(labels[true])})"
    assert named in what_it_confuses(scores)


def test_the_table_of_sensitivity_says_what_the_file_says(two: Predictions, tmp_path: Path) -> None:
    """Each row follows from its threshold alone, with scipy's intervals."""
    write_predictions(tmp_path / "p.csv", {"test": two}, "0" * 64)
    rows = rows_of(tmp_path / "p.csv")
    scores = np.array([float(row["p(positive)"]) for row in rows])
    truth = np.array([row["true"] == "positive" for row in rows])
    found = positive_scores(two)
    assert found is not None
    thresholds = [0.5, *(threshold_for(found, two.truth, wanted) for wanted in (0.9, 0.95, 0.99))]
    shown = texts(sensitivity_table(two, found, None))
    assert len(shown) == len(thresholds)
    for threshold, row in zip(thresholds, shown, strict=True):
        hits, rejected = (
            int((scores > threshold + 1e-7)[truth].sum()),
            int((scores <= threshold + 1e-7)[~truth].sum()),
        )
        positives, negatives = int(truth.sum()), int((~truth).sum())
        assert row[1:] == [
            f"{threshold:.3f}",
            f"{hits / positives:.1%}",
            interval(hits, positives),
            f"{rejected / negatives:.1%}",
            interval(rejected, negatives),
        ]
