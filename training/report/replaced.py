"""The version that a new one replaces: what it predicts for the same test images, and which ones flipped."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle import Bundle, Geometry, Repository
from serving.errors import LenserveError
from training.champion.compare import Outcome
from training.data import Dataset
from training.errors import DataError
from training.evaluation.onnx_session import open_session, run
from training.report.album import Album
from training.report.blocks import Block, Gallery, Photo, Prose, Section, Table
from training.report.evidence import TEST, Evidence, Replaced
from training.report.galleries import percent, predicted_photo
from training.report.predictions import PREDICTIONS_FILE, Predictions, read_predictions

_MOST_PHOTOS = 18  # of each direction


def find_replaced(  # noqa: PLR0917 - two versions, and what is known of the new one
    repository: Repository,
    model: str,
    before: int | None,
    test: Predictions | None,
    dataset: Dataset | None,
    geometry: Geometry,
    champion: int | None = None,
) -> Replaced | None:
    """The version that another one replaces, with its predictions for the same test images.

    Args:
        repository: where both are.
        model: its name.
        before: a version; None: one that is not published yet.
        test: what the new version predicts.
        dataset: the images, if they are at hand.
        geometry: of these images.
        champion: the replaced version; None: the newest before the other one.
    """
    older = [version for version in repository.versions(model) if before is None or version < before]
    if not older:
        return None
    try:
        bundle = repository.read(model, older[-1] if champion is None else champion)
        accuracy = bundle.manifest.measured().accuracy.value
    except LenserveError:  # a damaged version, or one that was never measured, is not worth failing a run
        return None
    predicted, reason = _predictions(bundle, test, dataset, geometry)
    return Replaced(bundle.version, accuracy, predicted, reason)


def replaced_by_run(outcome: Outcome | None) -> Replaced | None:
    """The champion that a run compared its version with; None if no image could be compared."""
    if outcome is None or outcome.champion is None or outcome.predicted is None:
        return None
    measured, left_out = outcome.champion.manifest.evaluation, outcome.challenge.left_out
    reason = "Both were measured on the same test images."
    if left_out:
        reason = (
            f"It was trained on {left_out:,} of these images, which the comparison leaves out; they are here."
        )
    accuracy = 0.0 if measured is None else measured.accuracy.value
    return Replaced(outcome.champion.version, accuracy, outcome.predicted, reason)


def flips(test: Predictions, replaced: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], ...]:
    """Test images that the new version alone gets right, and those that the replaced one alone gets right."""
    before, after = replaced == test.truth, test.correct
    return np.flatnonzero(after & ~before), np.flatnonzero(before & ~after)


def replaced_section(evidence: Evidence, album: Album) -> Section:
    """The section; without blocks if nothing is replaced."""
    replaced, test = evidence.replaced, evidence.test
    if replaced is None:
        return Section("replaced", "Against the version it replaces", ())
    title = f"Against version {replaced.version}"
    if replaced.predicted is None or test is None:
        return Section("replaced", title, (Prose((replaced.reason,)),))
    better, worse = flips(test, replaced.predicted)
    before = int((replaced.predicted == test.truth).sum())
    after, total = int(test.correct.sum()), len(test)
    blocks: list[Block] = [
        Table(
            "The same test images",
            ("", "right", "share"),
            (
                (f"version {replaced.version}", f"{before:,}", f"{before / total:.2%}"),
                ("this version", f"{after:,}", f"{after / total:.2%}"),
                ("only this version", f"{len(better):,}", f"{len(better) / total:.2%}"),
                (f"only version {replaced.version}", f"{len(worse):,}", f"{len(worse) / total:.2%}"),
            ),
        )
    ]
    if evidence.shown is not None:
        for name, found in (("Now right", better), ("Now wrong", worse)):
            photos = tuple(
                _photo(album, evidence.shown, test, replaced, int(index)) for index in found[:_MOST_PHOTOS]
            )
            if photos:
                blocks.append(Gallery(f"{name}: {len(found):,}", photos))
    lead = (
        f"{len(better):,} test images are now right that version {replaced.version} got wrong, and "
        f"{len(worse):,} are now wrong that it got right. {replaced.reason}"
    )
    return Section("replaced", title, tuple(blocks), lead)


def _photo(album: Album, dataset: Dataset, test: Predictions, replaced: Replaced, index: int) -> Photo:
    now = predicted_photo(album, dataset, test, index)
    if replaced.predicted is None:
        return now
    before = test.labels[replaced.predicted[index]]
    confidence = percent(float(test.confidence[index]))
    lines = (
        f"{before} → {test.labels[test.predicted[index]]}, {confidence}",
        f"true {test.labels[test.truth[index]]}",
    )
    return Photo(
        now.image, f"{now.alt}; version {replaced.version} predicted {before}", lines, now.tone, now.hover
    )


def _predictions(
    bundle: Bundle, test: Predictions | None, dataset: Dataset | None, geometry: Geometry
) -> tuple[npt.NDArray[np.int64] | None, str]:
    if test is None:
        return None, "The predictions of the new version are not at hand."
    labels = bundle.manifest.labels
    if set(labels) != set(test.labels):
        return None, "It has other labels, so its predictions cannot be compared."
    index = np.array([test.labels.index(label) for label in labels])  # its labels -> those of the new version
    kept = _kept_predictions(bundle.folder / "report" / PREDICTIONS_FILE, labels, test)
    if kept is not None:
        return index[kept], "Both were measured on the same test images."
    if dataset is None or bundle.manifest.geometry != geometry:
        return None, "It was measured on other images or in another geometry, so no image can be compared."
    probabilities, _ = run(open_session(bundle.model_file), dataset.test.images)  # (N, K)
    return (
        index[probabilities.argmax(axis=1)],
        "The older version was run on the new test images; it may have been trained on some of them.",
    )


def _kept_predictions(path: Path, labels: tuple[str, ...], test: Predictions) -> npt.NDArray[np.int64] | None:
    """(N,) what the older version predicted for each of these test images; None if it judged others."""
    try:
        kept = read_predictions(path, labels)[TEST]
    except (DataError, KeyError):
        return None
    predicted = dict(zip(kept.names, kept.predicted.tolist(), strict=True))
    true = dict(zip(kept.names, (labels[label] for label in kept.truth), strict=True))
    same = all(
        true.get(name) == test.labels[label] for name, label in zip(test.names, test.truth, strict=True)
    )
    return np.array([predicted[name] for name in test.names]) if same else None
