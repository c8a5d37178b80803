"""Measures a foreign model on labelled images: one half fits the temperature, the other half tests."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import Calibration, Evaluation, Geometry, Reference
from serving.bundle.golden import MAX_GOLDEN_IMAGES, class_balanced_indices
from serving.bundle.images import Pixels
from serving.bundle.measures import (
    expected_calibration_error,
    fit_temperature,
    softmax,
    wilson_interval,
)
from serving.bundle.reference import reference_of
from serving.counted import counted
from serving.errors import UnsupportedModel
from serving.importing.labelled_images import (
    LabelledFile,
    decode_batches,
    find_labelled_files,
    halve,
    name_some,
)
from serving.importing.sessions import Floats, batch_size, open_session, run_images

Labels = npt.NDArray[np.int64]
Serialize = Callable[[float], bytes]  # temperature -> a graph of a bundle's form

MIN_CALIBRATION_IMAGES = 50  # one number is fitted; on fewer images it would be chance


@dataclass(frozen=True, slots=True)
class Measured:
    """What labelled images say about a model."""

    evaluation: Evaluation
    calibration: Calibration | None  # None: too few images
    golden_images: Pixels  # (G, H, W, C) uint8, of the test half
    undecodable: int
    left_out: Sequence[str]  # labels, directories and images that were not measured, one sentence each
    digest: str  # of all files
    reference: Reference


def measure(root: Path, labels: Sequence[str], geometry: Geometry, serialize: Serialize) -> Measured:
    """Calibrate on one half of the labelled images, and evaluate on the other; on all, if they are few.

    Args:
        root: holds a directory of images for each label.
        labels: of the model.
        geometry: of its input.
        serialize: makes its graph.

    Raises:
        UsageError: a directory is not named like a label, or there are no files.
        UnsupportedModel: no file is an image.
    """
    files, left_out = find_labelled_files(root, labels)
    calibration_files, test_files = halve(files)
    calibration = None
    undecodable = 0
    measured: set[int] = set()  # labels
    if len(calibration_files) >= MIN_CALIBRATION_IMAGES:
        found, truth, undecodable = _predict(serialize(1.0), geometry, calibration_files)
        calibration = _calibrate(found, truth)
        measured.update(truth.tolist())
    else:
        test_files = files
    temperature = calibration.temperature if calibration else 1.0
    probabilities, truth, more = _predict(serialize(temperature), geometry, test_files)
    if not len(truth):
        raise UnsupportedModel(
            f"none of the {len(test_files)} files in {root} is an image that can be decoded: check --images"
        )
    measured.update(truth.tolist())
    correct = int((probabilities.argmax(axis=1) == truth).sum())
    evaluation = Evaluation(
        images=len(truth),
        correct=correct,
        accuracy=wilson_interval(correct, len(truth)),
        ece=expected_calibration_error(probabilities, truth),
    )
    chosen = class_balanced_indices(np.array([file.label for file in test_files]), MAX_GOLDEN_IMAGES)
    digest = hashlib.sha256("".join(f"{file.sha256} {file.label}\n" for file in files).encode()).hexdigest()
    return Measured(
        evaluation=evaluation,
        calibration=calibration,
        golden_images=_decode([test_files[index] for index in chosen], geometry),
        undecodable=undecodable + more,
        left_out=[*_without_images(labels, measured), *left_out],
        digest=digest,
        reference=reference_of(probabilities),
    )


def _without_images(labels: Sequence[str], measured: Collection[int]) -> Iterator[str]:
    """Name the labels that no image was measured of."""
    missing = [label for index, label in enumerate(labels) if index not in measured]
    if missing:
        yield (
            f"no images of {len(missing):,} of {counted(len(labels), 'label')} ({name_some(missing)}), whose "
            "accuracy is unknown: add some"
        )


def _predict(model: bytes, geometry: Geometry, files: Sequence[LabelledFile]) -> tuple[Floats, Labels, int]:
    """Return probabilities (N, K), true labels (N,), and the number of files that cannot be decoded."""
    session, at_once = open_session(model), batch_size(geometry.height, geometry.width)
    probabilities: list[Floats] = []
    truth: list[Labels] = []
    undecodable = 0
    for images, labels, skipped in decode_batches(files, geometry, at_once):
        undecodable += skipped
        if len(images):
            probabilities.append(run_images(session, images, at_once)[0])
            truth.append(labels)
    if not truth:
        return np.empty((0, 1), np.float32), np.empty(0, np.int64), undecodable
    return np.concatenate(probabilities), np.concatenate(truth), undecodable


def _decode(files: Sequence[LabelledFile], geometry: Geometry) -> Pixels:
    return np.concatenate([images for images, _, _ in decode_batches(files, geometry, len(files))])


def _calibrate(probabilities: Floats, truth: Labels) -> Calibration | None:
    if len(truth) < MIN_CALIBRATION_IMAGES:
        return None
    logits = np.log(probabilities.astype(np.float64) + np.finfo(np.float32).tiny)  # (N, K)
    temperature = fit_temperature(logits, truth)
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(probabilities, truth),
        ece_after=expected_calibration_error(softmax(logits / temperature), truth),
    )
