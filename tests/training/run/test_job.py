"""A whole run, and what it publishes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle
from serving.errors import UsageError
from tests.training.fake_recipe import FakeRecipe
from training.data import load
from training.errors import DataError
from training.evaluation.evaluate_bundle import evaluate_bundle
from training.evaluation.onnx_session import open_session, run
from training.recipe import Recipe
from training.report.metrics import Metrics
from training.run.job import Job, train_and_evaluate
from training.run.summary import RunSummary

# Beside the report. The gallery of labels to check depends on what the network is sure of.
PICTURES = (
    *("augmentation.png", "confusion.png", "embedding-map.svg", "mistakes.png", "predictions.png"),
    *("history-accuracy.svg", "history-loss.svg", "history-rate.svg", "reliability.svg", "risk-coverage.svg"),
    *(
        "occlusion-right.png",
        "occlusion-wrong.png",
        "activations-classes.png",
        "activations-filters.png",
        "features.png",
        "filters.png",
    ),
    *("quadrant-right-sure.png", "quadrant-right-unsure.png", "quadrant-wrong-sure.png"),
    *("quadrant-wrong-unsure.png", "training-images.png", "labels-to-check.png"),
)


def test_the_bundle_is_complete_and_verified(
    digits_recipe: Recipe, digits_summary: RunSummary, digits_bundle: Bundle
) -> None:
    """It has model, golden examples, report and provenance, and every digest matches."""
    manifest = digits_bundle.manifest
    assert digits_summary.verdict == "published"
    assert digits_summary.path == str(digits_bundle.folder)
    assert manifest.labels == tuple("0123456789")
    assert manifest.embedding_size == 84
    assert manifest.provenance.recipe == "lenet5-digits"
    assert manifest.provenance.recipe_digest == digits_recipe.digest()
    assert manifest.provenance.parameters == 62_158
    assert set(manifest.files) == {
        "model.onnx",
        "golden.npz",
        "report/metrics.json",
        "report/known-images.npy",
        "report/predictions.csv",
        "report/history.json",
        "report/report.html",
        *(f"report/{name}" for name in PICTURES),
        "report/weights.safetensors",
    }


def test_the_manifest_counts_the_answers_for_the_test_images(digits_bundle: Bundle) -> None:
    """What is served is compared with these counts: the columns of the confusion matrix."""
    report = (digits_bundle.folder / "report" / "metrics.json").read_text()
    confusion = np.array(json.loads(report)["test"]["confusion"])  # [true label][predicted label]
    reference = digits_bundle.manifest.reference
    assert reference is not None
    assert list(reference.predicted) == confusion.sum(axis=0).tolist()
    assert sum(reference.confidence) == digits_bundle.manifest.measured().images


def test_golden_examples_are_real_test_images_of_every_class(
    digits_recipe: Recipe, digits_bundle: Bundle
) -> None:
    """32 images of the test split, at least three of each digit, with the probabilities of the file."""
    golden = digits_bundle.golden()
    dataset, _ = load(digits_recipe.data, digits_recipe.geometry, None)
    known = {
        image.tobytes(): label for image, label in zip(dataset.test.images, dataset.test.labels, strict=True)
    }
    labels = [known[image.tobytes()] for image in golden.images]
    assert len(labels) == 32
    assert min(np.bincount(labels, minlength=10)) >= 3
    probabilities, _ = run(open_session(digits_bundle.model_file), golden.images)
    assert golden.largest_difference(probabilities) < 1e-6


def test_evaluating_the_bundle_reproduces_its_manifest(digits_bundle: Bundle) -> None:
    """The published scores follow from the published file."""
    result = evaluate_bundle(digits_bundle.folder, None, None)
    evaluation = digits_bundle.manifest.measured()
    assert result.data == "digits"
    assert (result.metrics["images"], result.metrics["correct"]) == (evaluation.images, evaluation.correct)
    assert result.same_as_manifest
    assert result.metrics["accuracy"] > 0.9


def test_evaluating_on_data_with_unknown_labels_is_rejected(digits_bundle: Bundle) -> None:
    """The message names the unknown labels."""
    with pytest.raises(DataError, match="4 labels that the bundle does not have: pattern-0, pattern-1"):
        evaluate_bundle(digits_bundle.folder, "fake", None)


def test_evaluating_another_folder_is_wrong_usage(tmp_path: Path) -> None:
    """A path that is not a version's folder is a UsageError."""
    with pytest.raises(UsageError, match="is not a bundle"):
        evaluate_bundle(tmp_path, None, None)


def test_the_report_is_self_contained(digits_bundle: Bundle) -> None:
    """One page without links or unfilled fields, and metrics that parse."""
    report = digits_bundle.folder / "report"
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 100
    assert "<h3>Augmentation</h3>" in page
    assert "http" not in page
    assert "This is version 1 of lenet5-digits, the first one." in page
    metrics = Metrics.model_validate_json((report / "metrics.json").read_text())
    assert metrics.test.evaluation == digits_bundle.manifest.evaluation
    assert all(check.passed for check in metrics.checks)
    best = json.loads((report / "history.json").read_text())[metrics.best_epoch - 1]
    assert metrics.validation is not None
    assert metrics.validation.value == pytest.approx(best["validation_accuracy"])
    assert metrics.validation.low < metrics.validation.value < metrics.validation.high
    assert len(json.loads((report / "history.json").read_text())) == metrics.epochs == 3


def test_resuming_a_finished_run_returns_its_summary(
    digits_recipe: Recipe, digits_job: Job, digits_summary: RunSummary
) -> None:
    """Nothing is trained or published twice."""
    summary = train_and_evaluate(digits_recipe, replace(digits_job, resume=True))
    assert summary == digits_summary
    assert digits_job.repository.versions("lenet5-digits") == [1]


def test_a_failed_gate_publishes_nothing_and_keeps_the_report(job: Job, fake_recipe: FakeRecipe) -> None:
    """The verdict names each failed check with its numbers; the repository is not created."""
    recipe = fake_recipe("training.epochs=1", "gates.max_ece=1e-9", "gates.max_parity_gap=1e-12")
    summary = train_and_evaluate(recipe, job)
    assert (summary.verdict, summary.version, summary.path) == ("refused", None, None)
    assert summary.refusal is not None
    assert "test calibration error beyond chance: " in summary.refusal
    assert "maximum 1e-09 (gates.max_ece)" in summary.refusal
    assert "largest probability gap to torch" in summary.refusal
    assert not job.repository.root.exists()
    assert (job.run_dir / "report" / "report.html").exists()
