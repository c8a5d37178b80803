"""Publishes a foreign ONNX file: wraps it, compares it with the file, measures it, and proves it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import (
    MODEL_FILE,
    STABLE_ALIAS,
    Bundle,
    Description,
    Golden,
    Imported,
    Provenance,
    Repository,
    write_golden,
)
from serving.bundle.images import Pixels
from serving.bundle.operations import keep_served
from serving.bundle.who import who
from serving.engine.base import Device
from serving.engine.onnx import OnnxEngine
from serving.engine.proof import warm_and_prove
from serving.errors import BundleError, EngineError, UnsupportedModel, UsageError
from serving.importing.batches import may_scan
from serving.importing.foreign_model import ForeignModel, understand
from serving.importing.graph import in_training_mode
from serving.importing.measuring import Measured, measure
from serving.importing.sessions import batch_size, open_session, run_images
from serving.importing.settings import ImportSettings
from serving.importing.source import first_line
from serving.importing.wrap import Batch, wrap

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

RECIPE = "import"
_BATCH_SIZES = (1, 2, 5)  # a single image, an even and an odd batch

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)

# Largest difference between the wrapped graph and the file: rounding in another order.
_MAX_DIFFERENCE = 1e-4
_MAX_COARSE_DIFFERENCE = 2e-2  # of FP16 and integers
_GOLDEN_TOLERANCE = 2e-3  # the manifest's default
_COARSE_GOLDEN_TOLERANCE = 2e-2  # of FP16 and integers, which each device computes differently


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A published import."""

    bundle: Bundle
    location: str  # of the version: its folder, or its URL
    foreign: ForeignModel
    batch: Batch
    difference: float  # largest one between a probability of the bundle and of the file
    measured: Measured | None
    served: int  # version of the model that servers answer with


def import_model(path: Path, name: str, repository: Repository, settings: ImportSettings) -> ImportResult:
    """Publish an ONNX file as the next version of a model.

    Args:
        path: the ONNX file.
        name: of the model.
        repository: where it is published. If anything fails, nothing is. Another version that is served
            stays served: without the alias `stable`, that is made to name it.
        settings: what the file does not say.

    Raises:
        UsageError: an option is missing or contradicts the file, or the repository cannot be written.
        UnsupportedModel: the file is not a classifier of images that can be served.
        BundleError: the name is invalid, or the version that would stay served does not run here.
    """
    foreign = understand(path, settings)
    batch, difference = _choose_batch(foreign)
    serialize = partial(_serialize, foreign, batch)
    measured = (
        measure(settings.images, foreign.labels, foreign.geometry, serialize) if settings.images else None
    )
    temperature = measured.calibration.temperature if measured and measured.calibration else 1.0
    images = measured.golden_images if measured and len(measured.golden_images) else foreign.examples

    def write(staging: Path) -> Description:
        file = staging / MODEL_FILE
        file.write_bytes(serialize(temperature))
        probabilities, embedding = run_images(
            open_session(str(file)), images, batch_size(*foreign.image.size)
        )
        golden = Golden(images, probabilities)
        write_golden(golden, staging)
        tolerance = _COARSE_GOLDEN_TOLERANCE if foreign.source.is_coarse else _GOLDEN_TOLERANCE
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

    try:
        keep_served(repository, name, prove=_require_runs)  # whatever the new one is worth: people promote it
        bundle = repository.publish(name, write)
        served = repository.aliases(name).get(STABLE_ALIAS, bundle.version)
    except OSError as error:
        raise UsageError(
            f"the repository {repository.root} cannot be written: {error.strerror or error}; "
            "make room, correct its permissions, or set another --repository"
        ) from error
    location = repository.location(bundle.model, bundle.version)
    return ImportResult(bundle, location, foreign, batch, difference, measured, served)


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
    graph = foreign.source.model.graph
    random = [node.op_type for node in graph.node if node.op_type in _RANDOM]
    trains = in_training_mode(graph)
    remedy = "export it with a dynamic batch axis"
    if trains or not is_fixed:
        remedy = "export it in inference mode (model.eval())"
    if trains:
        remedy = f"{trains} is in training mode: {remedy}"
    elif random:
        remedy = f"{random[0]} gives other values each time: export the model without it"
    raise UnsupportedModel(
        f"the file, exported with {exported}, gives other results in batches of {_BATCH_SIZES[-1]} "
        f"({'; '.join(reasons)}): {remedy}"
    )


def _largest_difference(foreign: ForeignModel, batch: Batch) -> float:
    """Compare the wrapped graph with the file at several batch sizes; infinite if anything is not finite.

    Embeddings, which the file does not give, are compared with those of each image alone, relative to the
    largest value.
    """
    session = open_session(_serialize(foreign, batch, 1.0))
    _, alone = run_images(session, foreign.examples, 1)  # (N, D)
    scale = max(1.0, float(np.abs(alone).max()))
    differences = []
    for size in _BATCH_SIZES:
        probabilities, embedding = run_images(session, foreign.examples, size)
        differences += [
            np.abs(probabilities - foreign.expected).max(),
            np.abs(embedding - alone).max() / scale,
        ]
    largest = float(np.max(differences))  # NaN if any is
    return largest if np.isfinite(largest) else float("inf")


def _prove(file: Path, golden: Golden, tolerance: float) -> None:
    """Load the file as a server does, and have it reproduce its golden examples."""
    device = Device("cpu", 0, "import")
    engine = OnnxEngine.load(file, device, threads=1, max_batch_size=_BATCH_SIZES[-1])
    try:
        warm_and_prove(engine, golden, tolerance=tolerance, sizes=_BATCH_SIZES)
    finally:
        engine.close()


def _require_runs(served: Bundle) -> None:
    """Check that servers can load the version that stays served: otherwise they may serve the new one.

    Raises:
        BundleError: it does not run.
    """
    try:
        _prove(served.model_file, served.golden(), served.manifest.golden_tolerance)
    except (BundleError, EngineError) as error:
        raise BundleError(
            f"nothing is published: version {served.version} of model {served.model!r}, which is served "
            f"while there is no alias {STABLE_ALIAS!r}, does not run on this machine: {error}. Choose the "
            f"version to serve with `lenserve models promote {served.model}@VERSION`, then import again"
        ) from error


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
