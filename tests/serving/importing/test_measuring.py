"""Labelled images measure an imported model: accuracy on one half, temperature from the other."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.bundle import Repository
from serving.bundle.captured import ANSWERS, PREDICTED
from serving.bundle.measures import expected_calibration_error, softmax, wilson_interval
from serving.errors import UnsupportedModel, UsageError
from serving.importing.importer import ImportResult, import_model
from serving.importing.labelled_images import find_labelled_files, halve
from serving.importing.settings import ImportSettings
from serving.importing.summary import notes
from tests.serving.importing import foreign_files as files
from tests.serving.importing.foreign_files import CLASSES, MEAN, SIDE, STD, nchw, reference

LABELS = tuple(f"class {number}" for number in range(CLASSES))


def write_images(root: Path, model: Path, count: int, *, temperature: float) -> None:
    """Write images with labels drawn from the model's probabilities at a temperature; 0: its own labels."""
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    images[:, :, :, 0] //= random.integers(1, 5, count, np.uint8)[:, None, None]  # more labels occur
    probabilities = softmax(reference(model, images, nchw)["logits"] / max(temperature, 1e-3))
    drawn = (probabilities.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    for number, (image, label) in enumerate(zip(images, drawn, strict=True)):
        folder = root / LABELS[min(label, CLASSES - 1)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")


def import_measured(repository: Repository, model: Path, labels: Path, images: Path) -> ImportResult:
    """Import with labelled images."""
    return import_model(
        model, "foreign", repository, ImportSettings(labels=labels, mean=MEAN, std=STD, images=images)
    )


def test_accuracy_and_temperature_are_those_of_the_images(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """The network is too sure by a factor of 3; recomputed from the file itself, on the half that tests."""
    model = files.plain(tmp_path / "plain.onnx")
    root = tmp_path / "photos"
    write_images(root, model, 240, temperature=3)
    (root / LABELS[0] / "broken.png").write_bytes(b"no image")
    (root / LABELS[0] / ".DS_Store").write_bytes(b"system")
    _, test = halve(find_labelled_files(root, LABELS)[0])
    pixels = np.stack([np.asarray(Image.open(file.path)) for file in test if file.path.stem != "broken"])
    truth = np.array([file.label for file in test if file.path.stem != "broken"])

    result = import_measured(repository, model, labels, root)

    measured, manifest = result.measured, result.bundle.manifest
    assert measured is not None
    assert measured.undecodable == 1
    assert any(line.endswith(" images, 1 file skipped") for line in notes(result))
    assert manifest.calibration is not None
    assert 2 < manifest.calibration.temperature < 4.5
    assert manifest.calibration.ece_after < manifest.calibration.ece_before
    expected = softmax(reference(model, pixels, nchw)["logits"] / manifest.calibration.temperature)
    correct = int((expected.argmax(axis=1) == truth).sum())
    assert manifest.evaluation is not None
    assert (manifest.evaluation.images, manifest.evaluation.correct) == (len(truth), correct)
    assert manifest.evaluation.accuracy == wilson_interval(correct, len(truth))
    assert manifest.evaluation.ece == pytest.approx(expected_calibration_error(expected, truth), abs=1e-6)
    assert manifest.reference is not None
    assert manifest.reference.predicted == tuple(np.bincount(expected.argmax(axis=1), minlength=CLASSES))
    golden = result.bundle.golden()
    assert len(golden.images) == 32
    known = {image.tobytes() for image in pixels}
    assert all(image.tobytes() in known for image in golden.images)


def test_few_images_measure_but_do_not_calibrate(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """A temperature from 20 images would be chance; all of them test."""
    model = files.plain(tmp_path / "plain.onnx")
    write_images(tmp_path / "photos", model, 20, temperature=0)

    manifest = import_measured(repository, model, labels, tmp_path / "photos").bundle.manifest

    assert manifest.calibration is None
    assert manifest.measured().images == manifest.measured().correct == 20


def test_labels_and_images_that_were_not_measured_are_named(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """An accuracy of some labels is not one of all, and an image has one true label or none."""
    model = files.plain(tmp_path / "plain.onnx")
    root = tmp_path / "photos"
    pixels = np.random.default_rng(5).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    places = ["0/a", "0/b", "1/c", "1/inner/d", "2/deep/e", "3/f", "3/g", "3/h"]
    for image, place in zip(pixels, places, strict=True):
        path = root / f"class {place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (root / "class 0" / "again.png").write_bytes((root / "class 0" / "a.png").read_bytes())
    (root / "class 1" / "other.png").write_bytes((root / "class 3" / "f.png").read_bytes())
    (root / "class 1" / ".hidden").mkdir()
    (root / "class 4").mkdir()
    (root / "class 4" / "notes.txt").write_text("no image")

    result = import_measured(repository, model, labels, root)

    assert result.bundle.manifest.measured().images == 5  # a, b, c, g, h
    warnings = [line for line in notes(result) if line.startswith("warning")]
    assert "\n".join(warnings) == (
        "warning   --images: no images of 2 of 5 labels ('class 2', 'class 4'), whose accuracy is unknown: "
        "add some\n"
        "warning   --images: 2 subdirectories ignored ('class 1/inner', 'class 2/deep'): move images into "
        "the directory of their label itself\n"
        "warning   --images: 1 image left out, in directories of several labels ('class 1/other.png' and "
        "'class 3/f.png'): keep each in that of its true label"
    )


def test_labels_in_both_halves_are_measured(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """There is no warning where each label has images; half of them calibrate."""
    model = files.plain(tmp_path / "plain.onnx")
    write_images(tmp_path / "photos", model, 240, temperature=9)
    result = import_measured(repository, model, labels, tmp_path / "photos")
    assert not [line for line in notes(result) if line.startswith("warning")]


def test_images_that_are_all_left_out_say_why(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """Otherwise the directories would look full."""
    model = files.plain(tmp_path / "plain.onnx")
    root = tmp_path / "photos"
    for place in ("class 0/a", "class 1/a", "class 1/inner/b"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(place[-1].encode())
    with pytest.raises(UsageError) as refused:
        import_measured(repository, model, labels, root)
    assert str(refused.value) == (
        f"--images {root} has no files in directories that are named like labels: add some; 1 subdirectory "
        "ignored ('class 1/inner'): move images into the directory of their label itself; 1 image left out, "
        "in directories of several labels ('class 0/a' and 'class 1/a'): keep each in that of its true label"
    )
    assert not repository.models()


def test_directories_that_are_no_labels_are_named(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """A split directory is most often the reason."""
    model = files.plain(tmp_path / "plain.onnx")
    root = tmp_path / "photos"
    (root / "val" / LABELS[0]).mkdir(parents=True)
    (root / "unicorn").mkdir()
    with pytest.raises(UsageError) as refused:
        import_measured(repository, model, labels, root)
    assert str(refused.value) == (
        f"--images {root}: 2 of 2 directories are not labels of the model ('unicorn', 'val'): "
        f"'val' looks like a split: use --images {root / 'val'}"
    )
    with pytest.raises(UsageError, match="has no files in directories that are named like labels"):
        import_measured(repository, model, labels, root / "val")
    with pytest.raises(UsageError, match="is not a directory"):
        import_measured(repository, model, labels, root / "none")


def test_captured_images_that_nobody_labelled_measure_nothing(
    repository: Repository, labels: Path, tmp_path: Path
) -> None:
    """The model would be compared with its own answers."""
    model = files.plain(tmp_path / "plain.onnx")
    (tmp_path / "capture" / "pets" / PREDICTED / LABELS[0]).mkdir(parents=True)
    (tmp_path / "capture" / "pets" / ANSWERS).mkdir()
    with pytest.raises(UsageError, match=r"^--images: .*what the network predicted.*labelled"):
        import_measured(repository, model, labels, tmp_path / "capture" / "pets" / PREDICTED)
    assert not repository.root.exists()


def test_files_without_an_image_measure_nothing(repository: Repository, labels: Path, tmp_path: Path) -> None:
    """Nothing is published."""
    model = files.plain(tmp_path / "plain.onnx")
    folder = tmp_path / "photos" / LABELS[0]
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(UnsupportedModel, match=r"none of the 1 files in .* is an image that can be decoded"):
        import_measured(repository, model, labels, tmp_path / "photos")
    assert not repository.root.exists()
