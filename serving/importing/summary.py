"""The outcome of an import, as lines for people and as JSON."""

import json
from collections.abc import Sequence

import numpy as np

from serving.counted import counted
from serving.importing.foreign_model import ForeignModel
from serving.importing.importer import ImportResult
from serving.importing.measuring import MIN_CALIBRATION_IMAGES, Measured
from serving.importing.scores import Scores

# Largest range of a probability over generated images of a network that does not look at them.
_CONSTANT = 1e-4
_MAX_SHOWN = 5  # labels


def notes(result: ImportResult) -> list[str]:
    """What was read, assumed, checked and measured, one line each."""
    foreign = result.foreign
    source, scores = foreign.source, foreign.scores
    produced = f"{source.producer}, opset {source.opset}, {counted(source.parameters, 'parameter')}"
    classes = counted(scores.classes, "class", "classes")
    lines = [
        f"read      {source.path.name}: {produced}",
        f"input     {foreign.image.name!r}: {foreign.image}",
        f"pixels    {foreign.normalization}",
        f"output    {scores.name!r}: {scores.kind} of {classes}{_meaning(foreign)}",
        f"embedding {_embedding(foreign)}",
        f"labels    {_few(foreign.labels)} ({foreign.labels_origin})",
    ]
    if foreign.origin:
        lines.append(f"taken     from {', '.join(foreign.origin)}, where no option says otherwise")
    if foreign.assumed:
        lines.append(f"assumed   {' '.join(foreign.assumed)}: the file does not say")
    lines.append(
        f"checked   probabilities differ from {_compared(scores)} by {result.difference:.1g} at most, for "
        f"{counted(len(foreign.examples), 'generated image')}; batches: {result.batch}"
    )
    lines += [f"warning   {warning}" for warning in warnings(result)]
    return [*lines, *_measured(result.measured)]


def warnings(result: ImportResult) -> list[str]:
    """What speaks against the import, although it succeeded."""
    found = [f"--images: {each}" for each in result.measured.left_out] if result.measured else []
    if np.ptp(result.foreign.expected, axis=0).max() < _CONSTANT:
        found.append("all generated images get the same probabilities: check --mean, --std and --pixels")
    return found


def _meaning(foreign: ForeignModel) -> str:
    """Say which label a single value stands for."""
    if foreign.scores.outputs > 1:
        return ""
    return f"; one value, high for the second label, {foreign.labels[1]!r}: if it is low, exchange the labels"


def _embedding(foreign: ForeignModel) -> str:
    features = foreign.features
    if foreign.has_embedding:
        return f"{features.name!r}: {counted(features.size, 'value')}, which the last layer gets"
    return f"{features.name!r}, the output itself: no last layer was found before it"


def _compared(scores: Scores) -> str:
    """Return what the check compares with: a file of logits holds no probabilities."""
    if scores.kind != "logits":
        return "the file's output" + (", divided by its sum," if scores.is_rounded else "")
    return f"the {'sigmoid' if scores.outputs == 1 else 'softmax'} of the file's output"


def _few(labels: Sequence[str]) -> str:
    shown = labels if len(labels) <= _MAX_SHOWN else (*labels[: _MAX_SHOWN - 1], "...", labels[-1])
    return f"{len(labels):,}: {', '.join(shown)}"


def _measured(measured: Measured | None) -> list[str]:
    if measured is None:
        return ["measured  nothing, and not calibrated: --images names labelled images for both"]
    accuracy = measured.evaluation.accuracy
    skipped = f", {counted(measured.undecodable, 'file')} skipped" if measured.undecodable else ""
    line = (
        f"measured  accuracy {accuracy.value:.2%} (95 %: {accuracy.low:.2%} to {accuracy.high:.2%}) on "
        f"{counted(measured.evaluation.images, 'image')}{skipped}"
    )
    if not measured.calibration:
        return [line, f"calibrated not: fewer than {2 * MIN_CALIBRATION_IMAGES} images; add some to --images"]
    calibration = measured.calibration
    errors = f"{calibration.ece_before:.2%} before, {calibration.ece_after:.2%} after"
    return [line, f"calibrated temperature {calibration.temperature:.3f}; calibration error {errors}"]


def to_json(result: ImportResult) -> dict[str, object]:
    """Return what was published, for programs."""
    bundle = result.bundle
    return {
        "model": bundle.model,
        "version": bundle.version,
        "path": result.location,
        "digest": bundle.digest,
        "served": result.served,
        "manifest": json.loads(bundle.manifest.to_json()),
        "assumed": list(result.foreign.assumed),
        "difference": result.difference,
        "warnings": warnings(result),
    }
