"""predictions.csv: complete, exact, and readable for scikit-learn."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle
from tests.training.report.random_predictions import random_predictions
from training.data import load_unchecked
from training.errors import DataError
from training.recipe import resolve
from training.report import predictions as predictions_module
from training.report.predictions import (
    predict_splits,
    predictions_of,
    read_predictions,
    readable,
    write_predictions,
)

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("count", [2, 20])
def test_all_probabilities_come_back_to_the_bit(tmp_path: Path, count: int) -> None:
    """Up to 20 labels the file has every probability; groups and both splits come back too."""
    labels = tuple(f"label {number}" for number in range(count))
    written = {
        "test": random_predictions(50, labels, groups=True),
        "validation": random_predictions(30, labels),
    }
    write_predictions(tmp_path / "p.csv", written, DIGEST)
    found = read_predictions(tmp_path / "p.csv", labels)
    assert list(found) == ["test", "validation"]
    for split, predictions in written.items():
        assert found[split].names == predictions.names
        assert found[split].groups == predictions.groups
        assert np.array_equal(found[split].truth, predictions.truth)
        back = found[split].probabilities
        assert back is not None
        assert predictions.probabilities is not None
        assert np.array_equal(back, predictions.probabilities)


def test_with_many_labels_the_five_most_probable_are_kept(tmp_path: Path) -> None:
    """And the true label's probability, which the loss needs."""
    labels = tuple(f"n{number:04d}" for number in range(1000))
    written = random_predictions(40, labels)
    write_predictions(tmp_path / "p.csv", {"test": written}, DIGEST)
    found = read_predictions(tmp_path / "p.csv", labels)["test"]
    assert found.probabilities is None
    assert np.array_equal(found.top, written.top)
    assert np.array_equal(found.top_probabilities, written.top_probabilities)
    assert np.array_equal(found.losses, written.losses)
    assert np.array_equal(found.correct, written.correct)
    assert (tmp_path / "p.csv").stat().st_size < 40 * 250


def test_any_label_and_any_file_name_can_be_written(tmp_path: Path) -> None:
    """Commas, quotes, line breaks, and bytes that are not UTF-8."""
    labels = ('a "quoted", label', "two\nlines", "path")
    broken = os.fsdecode(b"images/caf\xe9.png")
    probabilities = np.array([[0.5, 0.25, 0.25], [0.0, 1e-30, 1.0]], np.float32)
    predictions = predictions_of(probabilities, np.array([1, 2]), labels, [broken, "a,b\n.png"])
    write_predictions(tmp_path / "p.csv", {"test": predictions}, DIGEST)
    found = read_predictions(tmp_path / "p.csv", labels)["test"]
    assert found.names == ("images/caf\\xe9.png", "a,b\n.png") == (readable(broken), "a,b\n.png")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["true"], first["predicted"], first["correct"]) == (labels[1], labels[0], "0")
    assert (second["correct"], second["model_sha256"]) == ("1", DIGEST[:16])
    assert second["p(path)"] == second["confidence"] == "1.0"


def test_ties_are_decided_as_argmax_decides_them() -> None:
    """So that accuracy here and in the scores are the same."""
    probabilities = np.full((1, 30), 1 / 30, np.float32)
    found = predictions_of(probabilities, np.array([0]), [str(n) for n in range(30)], ["x"])
    assert found.predicted.tolist() == probabilities.argmax(axis=1).tolist() == [0]


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    """A missing column, an unknown label, and a missing file."""
    path = tmp_path / "p.csv"
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(path, ("a", "b"))
    path.write_text("path,split\nx,test\n")
    with pytest.raises(DataError, match="columns and labels"):
        read_predictions(path, ("a", "b"))
    write_predictions(path, {"test": random_predictions(3, ("a", "b"))}, DIGEST)
    with pytest.raises(DataError, match="columns and labels"):
        read_predictions(path, ("c", "d"))


def test_a_slow_validation_split_is_left_out(digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores do not need it."""
    recipe = resolve("lenet5-digits")
    dataset = load_unchecked(recipe.data, recipe.geometry, None)
    probabilities = np.full((len(dataset.test), 10), 0.1, np.float32)
    model = digits_bundle.model_file
    assert set(predict_splits(dataset, probabilities, model, None)) == {"test", "validation"}
    monkeypatch.setattr(predictions_module, "_BUDGET_S", 0)
    assert set(predict_splits(dataset, probabilities, model, None)) == {"test"}
