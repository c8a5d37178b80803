"""The report as an HTML page."""

import json

import numpy as np

from serving.bundle import Bundle
from training.evaluation.evaluate import score
from training.report.metrics import METRICS_FILE, Metrics
from training.report.page import render


def test_every_score_has_its_interval(digits_bundle: Bundle) -> None:
    """Two labels have AUC and balanced accuracy; a score that a run lacks has no tile."""
    written = (digits_bundle.folder / "report" / METRICS_FILE).read_text()
    of_ten_labels = Metrics.model_validate_json(written)
    positive = np.linspace(0, 1, 40)  # (40,)
    truth = (positive + np.resize([0.3, -0.3], 40) > 0.5).astype(np.int64)  # (40,)
    scores = score(np.stack([1 - positive, positive], axis=1), truth, ["normal", "pneumonia"])
    of_two_labels = of_ten_labels.model_copy(update={"test": scores})

    pictures = {"confusion.png": b"", "history.png": b""}
    page = render(of_two_labels, pictures, [])
    assert scores.auc is not None
    assert scores.balanced_accuracy is not None
    assert f"<b>{scores.auc.value:.4f}</b>AUC<br>" in page
    assert f"95 % interval {scores.auc.low:.4f} to {scores.auc.high:.4f}" in page
    balanced = scores.balanced_accuracy
    assert f"<b>{balanced.value:.2%}</b>balanced accuracy" in page
    assert f"95 % interval {balanced.low:.2%} to {balanced.high:.2%}" in page
    assert "top-5 accuracy" not in page
    page = render(of_ten_labels, pictures, [])
    assert "top-5 accuracy" in page
    assert "AUC<br>" not in page


def test_the_page_names_the_kernels_beside_the_device(digits_bundle: Bundle) -> None:
    """Metrics of older runs do not have them and are still read."""
    written = (digits_bundle.folder / "report" / METRICS_FILE).read_text()
    metrics = Metrics.model_validate_json(written)
    pictures = {"confusion.png": b"", "history.png": b""}
    assert f"on {metrics.machine}, reproducible kernels; " in render(metrics, pictures, [])
    values = json.loads(written)
    del values["kernels"]
    older = Metrics.model_validate(values)
    assert "kernels" not in render(older, pictures, []).rpartition(metrics.machine)[2]
