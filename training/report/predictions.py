"""predictions.csv: what the exported file predicted for every image of the test and validation splits."""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.text_files import read_text
from training.data import Dataset
from training.data.groups import find_groups
from training.data.labels import Indices, Labels
from training.data.splits import Split
from training.errors import DataError, RecipeError
from training.evaluation.onnx_session import open_session, run

PREDICTIONS_FILE = "predictions.csv"
MAX_COLUMNS = 20  # labels; with more, only the most probable ones are written
TOP = 5

_CHUNK = 4096  # rows sorted at once
_BUDGET_S = 60  # for the validation split
_TIMED_IMAGES = 16
_DIGEST_DIGITS = 16
_FIXED = ("path", "split", "group", "true", "predicted", "correct", "confidence", "true_probability")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for one split, in the order of its images."""

    labels: tuple[str, ...]  # K
    names: tuple[str, ...]  # N paths below the data root, or positions in a file
    groups: tuple[str, ...] | None  # N, such as patients; None: every image is independent
    truth: Labels  # (N,) int64
    top: Indices  # (N, T) labels, the most probable first; T is at most 5
    top_probabilities: Floats  # (N, T)
    true_probabilities: Floats  # (N,)
    probabilities: Floats | None  # (N, K); None: read from a file that has only the first five

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def predicted(self) -> Indices:
        """(N,) the most probable label."""
        return self.top[:, 0]

    @property
    def confidence(self) -> Floats:
        """(N,) the probability of the predicted label."""
        return self.top_probabilities[:, 0]

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(N,)."""
        correct: npt.NDArray[np.bool_] = self.predicted == self.truth
        return correct

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """(N,) cross-entropy in nats."""
        least = np.finfo(np.float32).tiny
        return -np.log(np.maximum(self.true_probabilities.astype(np.float64), least))


def predictions_of(
    probabilities: Floats,
    truth: Labels,
    labels: Sequence[str],
    names: Sequence[str],
    groups: Sequence[str] | None = None,
) -> Predictions:
    r"""Make predictions from probabilities.

    Args:
        probabilities: (N, K).
        truth: (N,) index into labels.
        labels: K names.
        names: N names of images; bytes that are not UTF-8 are escaped as \xNN.
        groups: N groups.
    """
    top = np.concatenate(
        [_most_probable(probabilities[start : start + _CHUNK]) for start in range(0, len(truth), _CHUNK)]
        or [np.empty((0, min(TOP, len(labels))), np.intp)]
    )  # (N, T)
    return Predictions(
        labels=tuple(labels),
        names=tuple(map(readable, names)),
        groups=None if groups is None else tuple(map(readable, groups)),
        truth=truth,
        top=top,
        top_probabilities=np.take_along_axis(probabilities, top, axis=1),
        true_probabilities=probabilities[np.arange(len(truth)), truth],
        probabilities=probabilities,
    )


def predict_splits(
    dataset: Dataset, test_probabilities: Floats, model_file: Path, group_pattern: str | None
) -> dict[str, Predictions]:
    """Predict the validation split, and join it with the predictions for the test split.

    A validation split that would take more than a minute is left out: the scores do not need it.

    Args:
        dataset: the splits.
        test_probabilities: (N, K) of the file for the test split.
        model_file: the exported file.
        group_pattern: finds the group of an image in its name.
    """
    probabilities = {"test": test_probabilities}
    session = open_session(model_file)
    if len(dataset.validation) and _estimate_s(session, dataset.validation) <= _BUDGET_S:
        probabilities["validation"], _ = run(session, dataset.validation.images)
    splits = dataset.splits()
    return {
        name: predictions_of(
            found,
            splits[name].labels,
            dataset.labels,
            splits[name].names,
            _groups(splits[name], group_pattern),
        )
        for name, found in probabilities.items()
    }


def _estimate_s(session: Any, split: Split) -> float:  # noqa: ANN401 - ONNX Runtime ships no types
    """How long a split takes, from two batches; the first one allocates memory."""
    first = split.images[:_TIMED_IMAGES]
    run(session, first)
    began_s = time.perf_counter()
    run(session, first)
    return (time.perf_counter() - began_s) / len(first) * len(split)


def _groups(split: Split, pattern: str | None) -> list[str] | None:
    try:
        return None if pattern is None else find_groups(split.names_in_split, pattern)
    except (DataError, RecipeError):  # no name of this split has a group
        return None


def readable(name: str) -> str:
    r"""Escape bytes that are not UTF-8, which Python keeps in file names as surrogates: \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_predictions(path: Path, splits: Mapping[str, Predictions], model_sha256: str) -> None:
    """Write the predictions of several splits to one CSV file in UTF-8.

    Columns: path, split, group, true, predicted, correct (1 or 0), confidence, true_probability; then
    `p(LABEL)` for each label, or, with more than 20 labels, top1 to top5 and p1 to p5; and model_sha256, the
    first 16 digits of the model file's digest. Probabilities have as many digits as float32 needs.
    """
    labels = next(iter(splits.values())).labels
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_FIXED, *_probability_columns(labels), "model_sha256"])
        for split, predictions in splits.items():
            writer.writerows(_rows(split, predictions, model_sha256[:_DIGEST_DIGITS]))


def read_predictions(path: Path, labels: Sequence[str]) -> dict[str, Predictions]:
    """Read predictions by split.

    Args:
        path: of predictions.csv.
        labels: the names of the labels, in the model's order.

    Raises:
        DataError: the file cannot be read, or is not what `write_predictions` writes for these labels.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
        index = {label: number for number, label in enumerate(labels)}
        splits = dict.fromkeys(row["split"] for row in rows)
        return {
            split: _parse([row for row in rows if row["split"] == split], tuple(labels), index)
            for split in splits
        }
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path} does not have the columns and labels of predictions: {error}") from error


def _most_probable(probabilities: Floats) -> Indices:
    """(n, K) -> (n, T); of equal probabilities the first label counts, as in `argmax`."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]


def _probability_columns(labels: Sequence[str]) -> list[str]:
    if len(labels) <= MAX_COLUMNS:
        return [f"p({label})" for label in labels]
    return [f"{name}{rank}" for name in ("top", "p") for rank in range(1, TOP + 1)]


def _rows(split: str, predictions: Predictions, digest: str) -> Iterator[list[str]]:
    labels = predictions.labels
    groups = predictions.groups or [""] * len(predictions)
    confidence, of_truth = (
        values.astype(str) for values in (predictions.confidence, predictions.true_probabilities)
    )
    many = len(labels) > MAX_COLUMNS
    shown = predictions.top_probabilities if many else predictions.probabilities
    if shown is None:
        raise ValueError("the probabilities of all labels are needed to write them. This is a bug.")
    for row, probabilities in enumerate(shown.astype(str).tolist()):
        yield [
            predictions.names[row],
            split,
            groups[row],
            labels[predictions.truth[row]],
            labels[predictions.predicted[row]],
            str(int(predictions.correct[row])),
            str(confidence[row]),
            str(of_truth[row]),
            *([labels[label] for label in predictions.top[row]] if many else []),
            *probabilities,
            digest,
        ]


def _parse(
    rows: Sequence[Mapping[str, str]], labels: tuple[str, ...], index: Mapping[str, int]
) -> Predictions:
    def column(name: str) -> tuple[str, ...]:
        return tuple(row[name] for row in rows)

    def numbers(names: Sequence[str]) -> Floats:
        return np.array([[row[name] for name in names] for row in rows], np.str_).astype(np.float32)

    truth = np.array([index[label] for label in column("true")], np.int64)
    groups = column("group") if any(column("group")) else None
    columns = _probability_columns(labels)
    if len(labels) <= MAX_COLUMNS:
        return predictions_of(numbers(columns), truth, labels, column("path"), groups)
    return Predictions(
        labels=labels,
        names=column("path"),
        groups=groups,
        truth=truth,
        top=np.array([[index[row[name]] for name in columns[:TOP]] for row in rows], np.intp),
        top_probabilities=numbers(columns[TOP:]),
        true_probabilities=numbers(["true_probability"])[:, 0],
        probabilities=None,
    )
