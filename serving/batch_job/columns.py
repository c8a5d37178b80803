"""Batches and results as columns: arrays of one length by name, which processes and Ray Data exchange."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.classify.results import Ranking
from serving.errors import LenserveError

Columns = dict[str, npt.NDArray[Any]]


class Row(NamedTuple):
    """The result of one image. Without labels if there is an error."""

    path: str
    label: str
    probability: float  # NaN if there is an error
    labels: Sequence[str]
    probabilities: Sequence[float]
    error: str  # CODE: message; empty if there is none


def as_objects(values: Sequence[object]) -> npt.NDArray[np.object_]:
    """Return (N,) Python objects, also if all of them are lists of the same length."""
    return np.fromiter(values, object, len(values))


def result_columns(results: Sequence[Ranking | LenserveError]) -> Columns:
    """Return the columns of results: label, probability, labels, probabilities, error.

    Without None, so that a column has the same type in every batch: Ray Data derives it from the values.
    """
    rankings = [() if isinstance(each, LenserveError) else each for each in results]
    texts = [f"{each.reason}: {each}" if isinstance(each, LenserveError) else "" for each in results]
    return {
        "label": as_objects([ranking[0].label if ranking else "" for ranking in rankings]),
        "probability": np.array(
            [ranking[0].probability if ranking else np.nan for ranking in rankings], np.float32
        ),
        "labels": as_objects([[each.label for each in ranking] for ranking in rankings]),
        "probabilities": as_objects([[each.probability for each in ranking] for ranking in rankings]),
        "error": as_objects(texts),
    }


def failed_columns(batch: Mapping[str, npt.NDArray[Any]], error: LenserveError) -> Columns:
    """Return the result of a batch all of whose images have the same error."""
    return dict(batch) | result_columns([error] * len(batch["path"]))


def rows_of(columns: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[int, Row]]:
    """Yield the number and the result of each row."""
    fields = (columns[name] for name in Row._fields)
    yield from zip(columns["row"].tolist(), map(Row._make, zip(*fields, strict=True)), strict=True)
