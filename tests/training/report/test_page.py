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


def test_scores_on_images_that_chose_something_are_marked(digits_bundle: Bundle) -> None:
    """Validation chose the epoch of this run; a recipe may also have been tuned on the test split."""
    written = (digits_bundle.folder / "report" / METRICS_FILE).read_text()
    metrics = Metrics.model_validate_json(written)
    pictures = {"confusion.png": b"", "history.png": b""}
    assert metrics.headline()["validation_chose_epoch"] == 1
    page = render(metrics, pictures, [])
    assert "</b>validation accuracy ‡<br>" in page
    assert ">‡ Optimistic, because validation images chose the epoch<" in page
    assert "†" not in page
    held_out = metrics.model_copy(
        update={"validation_chose_epoch": False, "tuned_on_test": "the learning rate"}
    )
    assert held_out.headline()["validation_chose_epoch"] == 0
    page = render(held_out, pictures, [])
    assert "</b>validation accuracy<br>" in page
    assert "</b>test accuracy †<br>" in page
    assert ">† Optimistic, because test images chose the learning rate<" in page
    assert "‡" not in page
    values = json.loads(written)
    del values["validation_chose_epoch"], values["tuned_on_test"]
    assert "validation_chose_epoch" not in Metrics.model_validate(values).headline()


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
