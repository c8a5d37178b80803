"""INT8 and FP16 forms: kept where they say nearly the same, left out with a reason where they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits

from serving.bundle import Bundle
from training.data.splits import Split
from training.job import Job, train_and_evaluate
from training.onnx_session import open_session, run
from training.recipe import resolve
from training.sections import VariantRecipe
from training.variants import make_variant

LABELS = tuple("0123456789")
ANY_SPEED = {"min_int8_speedup": 1e-3}


@pytest.fixture(scope="module")
def digits() -> Split:
    """Real digits at 28x28."""
    scans = load_digits()
    images = np.kron(scans.images * 15.9, np.ones((4, 4)))[:, 2:30, 2:30, np.newaxis].astype(np.uint8)
    return Split(images, scans.target.astype(np.int64), tuple(map(str, range(len(images)))))


@pytest.fixture
def model_file(digits_bundle: Bundle, tmp_path: Path) -> Path:
    """The digits' own exported file, in a folder of its own."""
    path = tmp_path / "model.onnx"
    path.write_bytes(digits_bundle.model_file.read_bytes())
    return path


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_good_variant_is_kept_and_measured(precision: str, model_file: Path, digits_bundle: Bundle) -> None:
    """Smaller, with the same inputs and outputs, and its figures are those that its file gives."""
    golden = digits_bundle.golden()
    truth = golden.probabilities.argmax(axis=1).astype(np.int64)
    test = Split(golden.images, truth, tuple(map(str, range(len(truth)))))
    recipe = VariantRecipe.model_validate({**ANY_SPEED, "min_same_labels": 0.9, "max_accuracy_drop": 0.1})
    report = make_variant(
        precision, model_file, calibration=golden.images, test=test, labels=LABELS, recipe=recipe
    )
    assert report.kept, report.reason
    path = model_file.with_name(f"model.{precision}.onnx")
    assert path.stat().st_size < 0.6 * model_file.stat().st_size
    probabilities, embedding = run(open_session(path), test.images)
    assert probabilities.dtype == embedding.dtype == np.float32
    assert report.variant is not None
    assert report.same_labels == (probabilities.argmax(axis=1) == truth).mean()
    assert report.variant.evaluation.correct == (probabilities.argmax(axis=1) == truth).sum()
    assert golden.largest_difference(probabilities) <= report.variant.golden_tolerance
    assert set(report.speedup) == {"batch 1", "batch 32"}
    stored = {onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}
    assert {"int8": "INT8", "fp16": "FLOAT16"}[precision] in stored


def test_a_variant_that_changes_labels_is_left_out_with_its_numbers(model_file: Path, digits: Split) -> None:
    """Calibrated on black images alone, INT8 knows no range: the gate says by how much it fails."""
    recipe = VariantRecipe.model_validate(ANY_SPEED)
    black = np.zeros((8, 28, 28, 1), np.uint8)
    report = make_variant("int8", model_file, calibration=black, test=digits, labels=LABELS, recipe=recipe)
    assert not report.kept
    assert "at least 99.00% are needed" in report.reason
    assert not model_file.with_name("model.int8.onnx").exists()
    assert report.in_words().startswith("left out, ")


def test_a_slow_int8_is_left_out(model_file: Path, digits: Split) -> None:
    """Nothing is a thousand times faster: the reason names both numbers."""
    recipe = VariantRecipe.model_validate(
        {"min_int8_speedup": 1000, "max_accuracy_drop": 1, "min_same_labels": 0}
    )
    few = digits.take(slice(64))
    report = make_variant("int8", model_file, calibration=few.images, test=few, labels=LABELS, recipe=recipe)
    assert not report.kept
    assert "times the CPU, at most 0.00 times is allowed" in report.reason


def test_without_training_images_there_is_no_int8(model_file: Path, digits: Split) -> None:
    """A network that is taken as it is has nothing to calibrate on."""
    none = digits.images[:0]
    report = make_variant(
        "int8", model_file, calibration=none, test=digits, labels=LABELS, recipe=VariantRecipe()
    )
    assert (report.kept, report.reason) == (False, "there are no training images to calibrate on")


def test_a_file_that_cannot_be_changed_is_no_failure_of_the_run(tmp_path: Path, digits: Split) -> None:
    """The tools' complaint is the reason."""
    (tmp_path / "model.onnx").write_bytes(b"no model")
    report = make_variant(
        "fp16",
        tmp_path / "model.onnx",
        calibration=digits.images,
        test=digits,
        labels=LABELS,
        recipe=VariantRecipe(),
    )
    assert not report.kept
    assert report.reason.startswith("it could not be made: ")


def test_kept_variants_are_published_with_digests(job: Job) -> None:
    """Their files lie beside model.onnx, the manifest says what they are worth, and the report too."""
    overrides = ["training.epochs=3", "variants.min_int8_speedup=1e-3", "variants.min_same_labels=0.9"]
    recipe = resolve(
        "lenet5-digits", [*overrides, "variants.max_accuracy_drop=0.1", "gates.min_accuracy=0.9"]
    )
    summary = train_and_evaluate(recipe, replace(job, model="digits"))
    assert summary.verdict == "published", summary.refusal
    manifest = job.repository.read("digits", 1).manifest
    assert set(manifest.variants) == {"int8", "fp16"}
    assert {"model.int8.onnx", "model.fp16.onnx"} <= set(manifest.files)
    assert manifest.variants["int8"].evaluation.images == manifest.evaluation.images
    assert "kept: " in (job.repository.folder("digits", 1) / "report" / "report.html").read_text()
