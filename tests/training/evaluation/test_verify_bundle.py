"""`verify` repeats the proof of a bundle, finds every kind of change, and says what it did not check."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from serving.bundle import MANIFEST_FILE, MODEL_FILE, Bundle, Golden, write_golden
from serving.errors import InvalidManifest, UsageError
from training.atomic_files import replace_file
from training.cli import main
from training.evaluation.verify_bundle import Verification, verify_bundle
from training.recipe import Recipe
from training.run.job import Job, train_and_evaluate


@pytest.fixture
def copy(digits_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the digits' bundle, to change."""
    folder = tmp_path / "repository" / "digits" / "1"
    shutil.copytree(digits_bundle.folder, folder)
    return folder


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write another manifest."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    change(manifest)
    replace_file(folder / MANIFEST_FILE, json.dumps(manifest).encode())


def seal(folder: Path) -> None:
    """Give the changed files of a bundle the digests that they have now."""

    def renew(manifest: dict[str, Any]) -> None:
        for name, digest in manifest["files"].items():
            content = (folder / name).read_bytes()
            digest |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}

    change_manifest(folder, renew)


def failed(result: Verification) -> list[str]:
    """The names of the checks that failed."""
    return [check.name for check in result.checks if not check.passed]


def test_a_published_bundle_holds(digits_bundle: Bundle) -> None:
    """Everything is checked, also the agreement with torch, and nothing is excused by rounding."""
    result = verify_bundle(digits_bundle.folder, None)
    assert (result.holds, result.complete, failed(result)) == (True, True, [])
    assert (result.model, result.version, result.digest) == ("lenet5-digits", 1, digits_bundle.digest)
    assert not result.not_checked
    details = {check.name: check.detail for check in result.checks}
    files = len(digits_bundle.manifest.files)
    assert details["digests"] == f"{files} of {files} files match"
    assert details["golden examples are test images"] == "32 of 32"
    assert details["correct test images of model.onnx"] == f"{digits_bundle.manifest.measured().correct}"
    assert "gates.min_accuracy" in details["test accuracy"]
    assert "gates.max_parity_gap" in details["largest probability gap to torch"]


def test_every_file_that_is_damaged_or_missing_is_named(digits_bundle: Bundle, tmp_path: Path) -> None:
    """One byte more, one less, and no file at all."""
    for number, name in enumerate(digits_bundle.manifest.files, start=1):
        folder = tmp_path / "digits" / str(number)
        shutil.copytree(digits_bundle.folder, folder)
        if number % 3:
            with (folder / name).open("r+b") as file:
                file.truncate((folder / name).stat().st_size + (1 if number % 3 == 1 else -1))
        else:
            (folder / name).unlink()
        result = verify_bundle(folder, None)
        assert failed(result) == [f"digest of {name}"]
        assert result.complete == (name not in (MODEL_FILE, "golden.npz", "report/metrics.json"))


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        (("evaluation", "images"), 360, {"test images", "test accuracy", "report"}),
        (("evaluation", "correct"), 1, {"correct test images", "test accuracy", "report"}),
        (("evaluation", "ece"), 0.5, {"calibration error", "report"}),
        (("evaluation", "accuracy"), {"value": 1, "low": 1, "high": 1}, {"test accuracy", "report"}),
        (("embedding_size",), 85, {"embedding size"}),
        (("calibration", "temperature"), 9.0, {"report", "agreement with torch"}),
        (("provenance", "data_digest"), "0" * 64, {"report"}),
        (("geometry", "background"), 7, {"report"}),
    ],
)  # fmt: skip
def test_a_manifest_with_other_figures_is_found(
    key: tuple[str, ...], value: object, names: set[str], copy: Path
) -> None:
    """A better accuracy, another geometry, another origin: no digest protects the manifest itself."""

    def change(manifest: dict[str, Any]) -> None:
        *sections, last = key
        for section in sections:
            manifest = manifest[section]
        manifest[last] = value

    change_manifest(copy, change)
    assert {name.removesuffix(" of model.onnx") for name in failed(verify_bundle(copy, None))} == names


def test_one_image_more_or_less_is_found(copy: Path, digits_bundle: Bundle) -> None:
    """A count that differs by one fails too, and the line has both numbers."""
    correct = digits_bundle.manifest.measured().correct
    change_manifest(copy, lambda manifest: manifest["evaluation"].update(correct=correct + 1))
    found = {check.name: check.detail for check in verify_bundle(copy, None).checks}
    assert found["correct test images of model.onnx"] == f"{correct}, published {correct + 1}"


@pytest.mark.parametrize("change", ["probabilities", "images", "model"])
def test_files_that_were_exchanged_with_their_digests_are_found(
    change: str, copy: Path, digits_bundle: Bundle
) -> None:
    """Other golden examples or another network do not fit the rest."""
    golden = digits_bundle.golden()
    if change == "probabilities":
        write_golden(Golden(golden.images, golden.probabilities[::-1].copy()), copy)
    if change == "images":
        # Nearly the same images with nearly the same probabilities, but of no test split.
        images = golden.images.copy()
        images[:, 0, 0] ^= 1
        write_golden(Golden(images, golden.probabilities), copy)
    if change == "model":
        (copy / MODEL_FILE).write_bytes(b"no network")
    seal(copy)
    result = verify_bundle(copy, None)
    expected = "golden examples are test images" if change == "images" else "golden examples of model.onnx"
    assert expected in failed(result)
    assert result.complete == (change == "images")


def test_gates_are_repeated(copy: Path) -> None:
    """A report whose recipe asks for more than the network reaches."""
    metrics = json.loads((copy / "report" / "metrics.json").read_text())
    metrics["recipe"]["gates.min_accuracy"] = 1.0
    (copy / "report" / "metrics.json").write_text(json.dumps(metrics))
    seal(copy)
    assert failed(verify_bundle(copy, None)) == ["test accuracy"]


def test_without_a_report_the_rest_is_checked(copy: Path) -> None:
    """The recipe is in the report, so neither its test split nor its gates are known."""
    shutil.rmtree(copy / "report")
    change_manifest(
        copy,
        lambda manifest: manifest.update(
            files={name: digest for name, digest in manifest["files"].items() if "report" not in name}
        ),
    )
    result = verify_bundle(copy, None)
    assert (result.holds, result.complete) == (True, False)
    assert [line.partition(":")[0] for line in result.not_checked] == ["report and gates", "test split"]


def test_other_weights_than_those_of_the_network_are_found(copy: Path) -> None:
    """Weights in the report are what pictures are made from: they must be those of model.onnx."""
    path = copy / "report" / "weights.safetensors"
    save_file({name: value + 0.1 for name, value in load_file(path).items()}, path)
    seal(copy)
    assert failed(verify_bundle(copy, None)) == ["agreement with torch"]


def test_without_weights_the_rest_is_checked(copy: Path) -> None:
    """Versions of large networks have none."""
    (copy / "report" / "weights.safetensors").unlink()
    change_manifest(copy, lambda manifest: manifest["files"].pop("report/weights.safetensors"))
    result = verify_bundle(copy, None)
    assert (result.holds, result.complete) == (True, True)
    assert [line.partition(":")[0] for line in result.not_checked] == ["agreement with torch"]


def test_a_file_that_the_manifest_does_not_list_is_mentioned(copy: Path) -> None:
    """It is not part of the version, and no server reads it."""
    (copy / "report" / "notes.txt").write_text("looks good")
    result = verify_bundle(copy, None)
    assert result.holds
    assert result.not_checked[0] == "1 files that manifest.json does not list: 'report/notes.txt'"


@pytest.fixture
def npz_bundle(job: Job, fake_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    """A bundle of arrays in a file, and an FP16 variant."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 200), ("val", 40), ("test", 60)):
        labels = np.arange(count) % 2
        images = random.integers(0, 90, (count, 28, 28)) + 150 * labels[:, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "some.npz", **arrays)
    recipe = fake_recipe("data.source=npz", "training.epochs=2", 'variants.precisions=["fp16"]')
    summary = train_and_evaluate(recipe, replace(job, data_root=tmp_path / "data"))
    assert summary.path is not None, summary.refusal
    return Path(summary.path)


def test_without_its_data_a_bundle_is_checked_in_part(
    npz_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No --data-root: exit code 0, the gap is named. A wrong one: a difference. The right one: all of it."""
    assert main(["verify", str(npz_bundle)]) == 0
    shown = capsys.readouterr().out
    assert "not checked: test split: source npz reads files, name their directory with --data-root" in shown
    assert shown.rstrip().endswith("checks passed; the test split was not evaluated")

    assert main(["verify", str(npz_bundle), "--data-root", str(tmp_path / "gone")]) == 1
    assert "lenserve-train verify: test split: " in capsys.readouterr().err

    assert main(["verify", str(npz_bundle), "--data-root", str(tmp_path / "data"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["holds"], result["complete"]) == (True, True)
    names = {check["name"] for check in result["checks"]}
    assert {"golden examples of model.fp16.onnx", "same labels of model.fp16.onnx"} <= names


def test_data_that_have_changed_are_a_difference(npz_bundle: Path, tmp_path: Path) -> None:
    """Ten images fewer in the test split."""
    path = tmp_path / "data" / "some.npz"
    arrays = dict(np.load(path))
    arrays["test_images"], arrays["test_labels"] = arrays["test_images"][10:], arrays["test_labels"][10:]
    np.savez(path, **arrays)
    found = {check.name: check.detail for check in verify_bundle(npz_bundle, tmp_path / "data").checks}
    assert found["test images of model.onnx"] == "50, published 60"


def test_what_is_no_bundle_is_an_error(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path that is not a version, and a manifest that does not parse: one line."""
    with pytest.raises(UsageError, match="is not a bundle"):
        verify_bundle(tmp_path, None)
    (copy / MANIFEST_FILE).write_text("{")
    with pytest.raises(InvalidManifest, match=r"manifest\.json: "):
        verify_bundle(copy, None)
    assert main(["verify", str(copy)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
