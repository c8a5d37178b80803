"""Publishes a foreign ONNX file: wraps it, compares it with the file, measures it, and proves it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import (
    MODEL_FILE,
    Bundle,
    Calibration,
    Description,
    Evaluation,
    Golden,
    Imported,
    Provenance,
    Reference,
    Repository,
    write_golden,
)
from serving.bundle.golden import MAX_GOLDEN_IMAGES, class_balanced_indices
from serving.bundle.images import Pixels
from serving.bundle.measures import (
    expected_calibration_error,
    fit_temperature,
    softmax,
    wilson_interval,
)
from serving.bundle.reference import reference_of
from serving.bundle.who import who
from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from serving.engine.proof import warm_and_prove
from serving.errors import UnsupportedModel
from serving.importing.batches import may_scan
from serving.importing.foreign_model import ForeignModel, open_session, understand
from serving.importing.labelled_images import LabelledFile, decode_batches, find_labelled_files, halve
from serving.importing.settings import ImportSettings
from serving.importing.source import first_line
from serving.importing.wrap import EMBEDDING, IMAGE, PROBABILITIES, Batch, wrap

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

RECIPE = "import"
_BATCH_SIZES = (1, 2, 5)  # a single image, an even and an odd batch
_MOST_AT_ONCE = 32  # images
_MIN_CALIBRATION_IMAGES = 50  # one number is fitted; on fewer images it would be chance

# Largest difference between the wrapped graph and the file: rounding in another order.
_MAX_DIFFERENCE = 1e-4
_MAX_COARSE_DIFFERENCE = 2e-2  # of FP16 and integers
_COARSE_GOLDEN_TOLERANCE = 2e-2  # of FP16 and integers, which each device computes differently


@dataclass(frozen=True, slots=True)
class Measured:
    """What labelled images say about a model."""

    evaluation: Evaluation
    calibration: Calibration | None  # None: too few images
    golden_files: list[LabelledFile]
    undecodable: int
    digest: str  # of all files
    reference: Reference


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A published import."""

    bundle: Bundle
    foreign: ForeignModel
    batch: Batch
    difference: float  # largest one between a probability of the bundle and of the file
    measured: Measured | None


def import_model(path: Path, name: str, repository: Repository, settings: ImportSettings) -> ImportResult:
    """Publish an ONNX file as the next version of a model.

    Args:
        path: the ONNX file.
        name: of the model.
        repository: where it is published. If anything fails, it is unchanged.
        settings: what the file does not say.

    Raises:
        UsageError: an option is missing or contradicts the file.
        UnsupportedModel: the file is not a classifier of images that can be served.
        BundleError: the name is invalid.
    """
    foreign = understand(path, settings)
    batch, difference = _choose_batch(foreign)
    measured = _measure(foreign, batch, settings.images) if settings.images else None
    temperature = measured.calibration.temperature if measured and measured.calibration else 1.0
    images = _golden_images(foreign, measured)

    def write(staging: Path) -> Description:
        file = staging / MODEL_FILE
        file.write_bytes(_serialize(foreign, batch, temperature))
        probabilities, embedding = _run(open_session(str(file)), images)
        golden = Golden(images, probabilities)
        write_golden(golden, staging)
        tolerance = _COARSE_GOLDEN_TOLERANCE if foreign.source.is_coarse else 2e-3
        _prove(file, golden, tolerance)
        return Description(
            labels=foreign.labels,
            geometry=foreign.geometry,
            embedding_size=embedding.shape[1],
            calibration=measured and measured.calibration,
            evaluation=measured and measured.evaluation,
            provenance=_provenance(foreign, batch, measured, images),
            golden_tolerance=tolerance,
            reference=measured and measured.reference,
        )

    bundle = repository.publish(name, write)
    return ImportResult(bundle, foreign, batch, difference, measured)


def _choose_batch(foreign: ForeignModel) -> tuple[Batch, float]:
    """Return the first way to run batches that agrees with the file, and its largest difference from it.

    Raises:
        UnsupportedModel: none does.
    """
    is_fixed = foreign.image.batch is not None
    ways: list[Batch] = ["made dynamic"] if is_fixed else ["dynamic", "made dynamic"]
    opset = max(
        entry.version for entry in foreign.source.model.opset_import if entry.domain in {"", "ai.onnx"}
    )
    if foreign.image.batch in (None, 1) and may_scan(opset):
        ways.append("one by one")
    reasons = []
    for way in ways:
        try:
            difference = _largest_difference(foreign, way)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no public base class
            reasons.append(f"{way}: {first_line(error)}")
            continue
        limit = _MAX_COARSE_DIFFERENCE if foreign.source.is_coarse else _MAX_DIFFERENCE
        if difference <= limit:
            return way, difference
        reasons.append(f"{way}: probabilities differ by {difference:.2g}, limit {limit:.2g}")
    exported = f"batch {foreign.image.batch}" if is_fixed else "any batch"
    raise UnsupportedModel(
        f"the file, exported with {exported}, gives other results in batches of {_BATCH_SIZES[-1]} "
        f"({'; '.join(reasons)}): export it with a dynamic batch axis"
    )


def _largest_difference(foreign: ForeignModel, batch: Batch) -> float:
    """Compare the wrapped graph with the file at several batch sizes; infinite if anything is not finite.

    Embeddings, which the file does not give, are compared with those of each image alone, relative to the
    largest value.
    """
    session = open_session(_serialize(foreign, batch, 1.0))
    _, alone = _run(session, foreign.examples, 1)  # (N, D)
    scale = max(1.0, float(np.abs(alone).max()))
    differences = []
    for size in _BATCH_SIZES:
        probabilities, embedding = _run(session, foreign.examples, size)
        differences += [
            np.abs(probabilities - foreign.expected).max(),
            np.abs(embedding - alone).max() / scale,
        ]
    largest = float(np.max(differences))  # NaN if any is
    return largest if np.isfinite(largest) else float("inf")


def _serialize(foreign: ForeignModel, batch: Batch, temperature: float) -> bytes:
    wrapped = wrap(
        foreign.source.model,
        image=foreign.image,
        normalization=foreign.normalization,
        scores=foreign.scores,
        scores_dtype=foreign.scores_dtype,
        features=foreign.features,
        temperature=temperature,
        batch=batch,
    )
    return wrapped.SerializeToString(deterministic=True)


def _run(session: Any, images: Pixels, batch_size: int = _MOST_AT_ONCE) -> tuple[Floats, Floats]:  # noqa: ANN401 - ONNX Runtime ships no type information
    """Run images in batches: probabilities (N, K) and embeddings (N, D)."""
    parts = [
        session.run([PROBABILITIES, EMBEDDING], {IMAGE: images[start : start + batch_size]})
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _measure(foreign: ForeignModel, batch: Batch, root: Path) -> Measured:
    """Calibrate on one half of the labelled images, and evaluate on the other."""
    files = find_labelled_files(root, foreign.labels)
    calibration_files, test_files = halve(files)
    calibration = None
    undecodable = 0
    if len(calibration_files) >= _MIN_CALIBRATION_IMAGES:
        found, truth, undecodable = _predict(foreign, _serialize(foreign, batch, 1.0), calibration_files)
        calibration = _calibrate(found, truth)
    else:
        test_files = files
    temperature = calibration.temperature if calibration else 1.0
    probabilities, truth, more = _predict(foreign, _serialize(foreign, batch, temperature), test_files)
    if not len(truth):
        raise UnsupportedModel(
            f"none of the {len(test_files)} files in {root} is an image that can be decoded: check --images"
        )
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
        golden_files=[test_files[index] for index in chosen],
        undecodable=undecodable + more,
        digest=digest,
        reference=reference_of(probabilities),
    )


def _predict(foreign: ForeignModel, model: bytes, files: list[LabelledFile]) -> tuple[Floats, Labels, int]:
    """Return probabilities (N, K), true labels (N,), and the number of files that cannot be decoded."""
    session = open_session(model)
    probabilities: list[Floats] = [np.empty((0, len(foreign.labels)), np.float32)]
    truth: list[Labels] = [np.empty(0, np.int64)]
    undecodable = 0
    for images, labels, skipped in decode_batches(files, foreign.geometry, _MOST_AT_ONCE):
        undecodable += skipped
        if len(images):
            probabilities.append(_run(session, images)[0])
            truth.append(labels)
    return np.concatenate(probabilities), np.concatenate(truth), undecodable


def _calibrate(probabilities: Floats, truth: Labels) -> Calibration | None:
    if len(truth) < _MIN_CALIBRATION_IMAGES:
        return None
    logits = np.log(probabilities.astype(np.float64) + np.finfo(np.float32).tiny)  # (N, K)
    temperature = fit_temperature(logits, truth)
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(probabilities, truth),
        ece_after=expected_calibration_error(softmax(logits / temperature), truth),
    )


def _golden_images(foreign: ForeignModel, measured: Measured | None) -> Pixels:
    """Return labelled images if there are any, else the examples: (G, H, W, C) uint8."""
    if measured is None:
        return foreign.examples
    batches = decode_batches(measured.golden_files, foreign.geometry, _MOST_AT_ONCE)
    images = np.concatenate([images for images, _, _ in batches])
    return images if len(images) else foreign.examples


def _prove(file: Path, golden: Golden, tolerance: float) -> None:
    """Load the file as a server does, and have it reproduce its golden examples."""
    device = Device("cpu", 0, "import")
    engine = OnnxEngine.load(file, device, threads=1, max_batch_size=_BATCH_SIZES[-1])
    try:
        warm_and_prove(engine, golden, tolerance=tolerance, sizes=_BATCH_SIZES)
    finally:
        engine.close()


def _provenance(foreign: ForeignModel, batch: Batch, measured: Measured | None, images: Pixels) -> Provenance:
    source = foreign.source
    imported = Imported(
        files=source.files,
        producer=source.producer,
        opset=source.opset,
        scores=foreign.scores.kind,
        embedding=foreign.features.name if foreign.has_embedding else None,
        mean=foreign.normalization.mean,
        std=foreign.normalization.std,
        layout=foreign.image.layout,
        channel_order=foreign.normalization.channel_order,
        batch=batch,
    )
    settings = {
        "imported": imported.model_dump(),
        "geometry": foreign.geometry.model_dump(),
        "labels": foreign.labels,
        "scores": asdict(foreign.scores),
    }
    return Provenance(
        recipe=RECIPE,
        recipe_digest=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        data_digest=measured.digest if measured else hashlib.sha256(images.tobytes()).hexdigest(),
        created_at=datetime.now(UTC),
        created_by=who(),
        framework=f"{source.producer}, ONNX opset {source.opset}",
        parameters=source.parameters,
        imported=imported,
    )
