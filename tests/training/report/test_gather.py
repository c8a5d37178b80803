"""The report of a published bundle is made again, with its data and without."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.bundle import Bundle, Repository
from serving.errors import UsageError
from tests.training.fake_recipe import FakeRecipe
from training import data
from training.cli import main
from training.data import Dataset
from training.errors import DataError
from training.report import gather
from training.report.album import Album
from training.report.evidence import Evidence
from training.report.gather import evidence_of_bundle
from training.report.replaced import find_replaced, flips, replaced_section
from training.report.report import write_report
from training.run.job import Job, train_and_evaluate


def test_a_report_made_again_is_that_of_the_run(digits_bundle: Bundle, tmp_path: Path) -> None:
    """The same predictions to the bit, the same figures and the same images; the bundle is unchanged."""
    before = {path: path.read_bytes() for path in digits_bundle.folder.rglob("*") if path.is_file()}
    assert main(["report", str(digits_bundle.folder), "--output", str(tmp_path / "again")]) == 0
    first = digits_bundle.folder / "report"
    for name in ("metrics.json", "history.json", "predictions.csv", "mistakes.png", "reliability.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes(), name
    page, again = ((folder / "report.html").read_text() for folder in (first, tmp_path / "again"))
    assert again.count("<svg") == page.count("<svg")
    assert "This is version 1 of lenet5-digits, the first one." in again
    assert before == {path: path.read_bytes() for path in before}


def test_the_bundle_itself_is_never_written_to(
    digits_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files have digests."""
    inside = digits_bundle.folder / "report"
    assert main(["report", str(digits_bundle.folder), "--output", str(inside)]) == 2
    assert "is in the bundle, which must not change" in capsys.readouterr().err


@pytest.fixture
def without_data(digits_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The bundle elsewhere, where its data are not to be found."""
    monkeypatch.setattr(gather, "_WITHOUT_FILES", ())
    shutil.copytree(digits_bundle.folder, tmp_path / "repository" / "lenet5-digits" / "1")
    return Repository(tmp_path / "repository").read("lenet5-digits", 1)


def test_without_data_the_numbers_remain(without_data: Bundle, tmp_path: Path) -> None:
    """From predictions.csv; images are missing, and the page says how to have them."""
    evidence, network = evidence_of_bundle(without_data.folder, None)
    assert (evidence.dataset, evidence.embedding) == (None, None)
    pictures = write_report(tmp_path / "report", evidence, network=network)
    assert {"reliability.svg", "confusion.png", "history-loss.svg"} <= set(pictures)
    assert "mistakes.png" not in pictures
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Errors by label" in page
    assert "lenserve-train report ... --data-root" in page
    assert "data:image" not in page


def test_a_bundle_without_predictions_has_a_report_too(without_data: Bundle, tmp_path: Path) -> None:
    """Older versions kept none: scores, curves and settings remain."""
    evidence, network = evidence_of_bundle(without_data.folder, None)
    old = replace(evidence, predictions={})
    pictures = write_report(tmp_path / "report", old, network=network)
    assert "history-loss.svg" in pictures
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Confusion matrix" in page
    assert not (tmp_path / "report" / "predictions.csv").exists()


def test_other_data_are_refused(digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report on other images would not be that of this version."""
    shorter = data.load_unchecked

    def fewer(*arguments: object) -> Dataset:
        dataset = shorter(*arguments)  # type: ignore[arg-type]
        return replace(dataset, test=dataset.test.take(slice(10)))

    monkeypatch.setattr(data, "load_unchecked", fewer)
    with pytest.raises(DataError, match=r"not the test images of lenet5-digits 1: \d+ of 10 are right"):
        evidence_of_bundle(digits_bundle.folder, None)


def test_a_bundle_without_metrics_is_named(without_data: Bundle) -> None:
    """A report is made from report/metrics.json."""
    metrics = without_data.folder / "report" / "metrics.json"
    manifest = json.loads((without_data.folder / "manifest.json").read_text())
    del manifest["files"]["report/metrics.json"]
    (without_data.folder / "manifest.json").write_text(json.dumps(manifest))
    metrics.unlink()
    with pytest.raises(UsageError, match=r"metrics\.json cannot be read"):
        evidence_of_bundle(without_data.folder, None)


@pytest.fixture
def evidence(digits_bundle: Bundle) -> Evidence:
    """Everything of the digits' run."""
    return evidence_of_bundle(digits_bundle.folder, None)[0]


def test_images_that_flipped_are_shown(digits_bundle: Bundle, evidence: Evidence) -> None:
    """Against itself nothing flips; against a version that was wrong elsewhere, both directions do."""
    test = evidence.predictions["test"]
    repository = Repository(digits_bundle.folder.parent.parent)
    same = find_replaced(repository, "lenet5-digits", None, test, evidence.dataset, evidence.geometry)
    assert same is not None
    assert same.predicted is not None
    assert np.array_equal(same.predicted, test.predicted)
    assert same.reason == "Both were measured on the same test images."
    better, worse = flips(test, same.predicted)
    assert not len(better)
    assert not len(worse)
    right = np.flatnonzero(test.correct)[:3]
    other = test.predicted.astype(np.int64).copy()
    other[right] = (test.truth[right] + 1) % 10
    section = replaced_section(replace(evidence, replaced=replace(same, predicted=other)), Album())
    assert section.lead.startswith(
        "3 test images are now right that version 1 got wrong, and 0 are now wrong"
    )
    assert [getattr(block, "title", "") for block in section.blocks] == [
        "The same test images",
        "Now right: 3",
    ]


def test_a_version_with_other_labels_is_not_compared(digits_bundle: Bundle, evidence: Evidence) -> None:
    """The page says why."""
    test = evidence.predictions["test"]
    other = replace(test, labels=tuple(f"digit {label}" for label in test.labels))
    repository = Repository(digits_bundle.folder.parent.parent)
    found = find_replaced(repository, "lenet5-digits", None, other, evidence.dataset, evidence.geometry)
    assert found is not None
    assert (found.predicted, found.version) == (None, 1)
    section = replaced_section(replace(evidence, replaced=found), Album())
    assert "other labels" in str(section.blocks)


def test_the_second_version_says_what_it_replaces(job: Job, fake_recipe: FakeRecipe) -> None:
    """Trained twice: the second report compares both, also where the first kept no predictions."""
    for run in ("one", "two"):
        lenient = ("gates.max_ece=1.0", "gates.min_skill=-1.0", "champion.max_accuracy_loss=0.2")
        recipe = fake_recipe("training.epochs=1", *lenient)
        summary = train_and_evaluate(recipe, replace(job, run_dir=job.run_dir / run))
        assert summary.verdict == "published", summary.refusal
    page = (job.repository.folder("fake", 2) / "report" / "report.html").read_text()
    assert "This is version 2 of fake, which replaces version 1 (accuracy " in page
    assert "<h2>Against version 1</h2>" in page
    assert "Both were measured on the same test images." in page
