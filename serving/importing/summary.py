"""The outcome of an import, as lines for people and as JSON."""

import json

import numpy as np

from serving.counted import counted
from serving.importing.importer import ImportResult
from serving.importing.measuring import MIN_CALIBRATION_IMAGES

# Largest range of a probability over generated images of a network that does not look at them.
_CONSTANT = 1e-4


def notes(result: ImportResult) -> list[str]:
    """What was read, assumed, checked and measured, one line each."""
    foreign, measured = result.foreign, result.measured
    source, scores = foreign.source, foreign.scores
    features = f"embedding {foreign.features.name!r}" if foreign.has_embedding else "also as the embedding"
    produced = f"{source.producer}, opset {source.opset}, {counted(source.parameters, 'parameter')}"
    classes = counted(scores.classes, "class", "classes")
    lines = [
        f"read      {source.path.name}: {produced}",
        f"input     {foreign.image.name!r}: {foreign.image}",
        f"output    {scores.name!r}: {scores.kind} of {classes}, {features}",
    ]
    if foreign.origin:
        lines.append(f"taken     from {', '.join(foreign.origin)}, where no option says otherwise")
    if foreign.assumed:
        lines.append(f"assumed   {' '.join(foreign.assumed)}: the file does not say")
    lines.append(
        f"checked   probabilities differ from the file's by {result.difference:.1g} at most; "
        f"batches: {result.batch}"
    )
    if np.ptp(foreign.expected, axis=0).max() < _CONSTANT:
        lines.append("warning   all generated images get the same probabilities: are --mean and --std right?")
    if measured is None:
        lines.append("measured  nothing: --images names labelled images to measure on")
        return lines
    accuracy = measured.evaluation.accuracy
    lines.append(
        f"measured  accuracy {accuracy.value:.2%} (95 %: {accuracy.low:.2%} to {accuracy.high:.2%}) on "
        f"{counted(measured.evaluation.images, 'image')}"
        + (f", {counted(measured.undecodable, 'file')} skipped" if measured.undecodable else "")
    )
    if measured.calibration:
        calibration = measured.calibration
        lines.append(
            f"calibrated temperature {calibration.temperature:.3f}; calibration error "
            f"{calibration.ece_before:.2%} before, {calibration.ece_after:.2%} after"
        )
    else:
        lines.append(f"calibrated not: fewer than {2 * MIN_CALIBRATION_IMAGES} images")
    return lines


def to_json(result: ImportResult) -> dict[str, object]:
    """Return what was published, for programs."""
    bundle = result.bundle
    return {
        "model": bundle.model,
        "version": bundle.version,
        "path": result.location,
        "digest": bundle.digest,
        "manifest": json.loads(bundle.manifest.to_json()),
        "assumed": list(result.foreign.assumed),
        "difference": result.difference,
    }
