"""Processes of a batch: they die without ending it, and an image that ends them becomes a row."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from serving.batch_job.columns import Columns, as_objects, result_columns
from serving.batch_job.file_classifier import ClassifierOptions
from serving.batch_job.local_engine import LocalEngine, chunks_of
from serving.classify.results import RankedLabel
from serving.errors import LenserveError, UsageError

OPTIONS = ClassifierOptions(Path("repository"), "fake", 1)


HUNGRY = 7  # an image that needs more memory than there is


def batch_of(deadly: set[int], rows: range) -> Columns:
    """Rows whose path says which images end a process."""
    paths = [("hungry" if row == HUNGRY else "deadly") if row in deadly else "good" for row in rows]
    return {"row": np.array(rows), "path": as_objects(paths)}


def load_fake(_options: ClassifierOptions) -> Callable[[Columns], Columns]:
    """A classifier that a deadly image ends, as a decoder with a fault would."""

    def classify(batch: Columns) -> Columns:
        if "deadly" in batch["path"]:
            os._exit(139)
        if "hungry" in batch["path"]:
            raise MemoryError
        results = [(RankedLabel("fine", 0, 1.0),)] * len(batch["path"])
        return batch | result_columns(results)

    return classify


def load_not(_options: ClassifierOptions) -> Callable[[Columns], Columns]:
    """A version that cannot be loaded."""
    raise UsageError("there is no such version")


def die_at_load(_options: ClassifierOptions) -> Callable[[Columns], Columns]:
    """A network that needs more memory than there is."""
    os._exit(137)


def run(
    load: Callable[[ClassifierOptions], Callable[[Columns], Columns]],
    deadly: set[int],
    *,
    rows: int = 16,
    processes: int = 1,
    most_deaths: int = 100,
) -> dict[int, str]:
    """Row -> error, of a whole run in chunks of 4."""
    engine = LocalEngine(
        OPTIONS, partial(batch_of, deadly), processes=processes, load=load, most_deaths=most_deaths
    )
    found: dict[int, str] = {}
    for columns in engine.run(chunks_of([range(rows)], 4)):
        for row, error in zip(columns["row"].tolist(), columns["error"].tolist(), strict=True):
            assert row not in found
            found[row] = error
    return found


def test_an_image_that_ends_its_process_is_a_row_and_all_others_are_classified(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its chunk is divided until it is alone. Without a traceback, also if memory is short."""
    errors = run(load_fake, {6, HUNGRY})

    assert len(errors) == 16
    assert {row: error for row, error in errors.items() if error} == {
        6: "WORKER_DIED: the process that decoded this image ended with exit code 139",
        HUNGRY: "WORKER_DIED: the process that decoded this image ran out of memory",
    }
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("load", "deadly", "message"),
    [
        (load_not, set(), "there is no such version"),
        (die_at_load, set(), "exit code 137 while it loaded the network"),
        (load_fake, {3}, "too many processes died, the last ended with exit code 139"),
    ],
)
def test_a_batch_that_cannot_work_ends_with_one_sentence(
    load: Callable[[ClassifierOptions], Callable[[Columns], Columns]], deadly: set[int], message: str
) -> None:
    """The network cannot be loaded, or the machine ends every process."""
    with pytest.raises(LenserveError, match=message):
        run(load, deadly, most_deaths=0)


def test_ranges_are_divided_into_chunks() -> None:
    """No chunk crosses a gap."""
    assert list(chunks_of([range(5), range(7, 9)], 3)) == [range(3), range(3, 5), range(7, 9)]
