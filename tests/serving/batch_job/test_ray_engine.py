"""The engine on Ray Data, where Ray is installed; tests/system/test_batch_kills.py runs whole jobs on it."""

import os
from pathlib import Path

import numpy as np
import pytest

from serving.batch_job.columns import Columns, as_objects, result_columns
from serving.batch_job.file_classifier import ClassifierOptions
from serving.batch_job.local_engine import chunks_of
from serving.batch_job.ray_engine import RayEngine
from serving.classify.results import RankedLabel

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

DEADLY = 6


class FakeClassifier:
    """A classifier whose process a deadly image ends."""

    def __init__(self, _options: ClassifierOptions) -> None:
        pass

    def __call__(self, batch: Columns) -> Columns:
        """Classify, or end the process."""
        if "deadly" in batch["path"]:
            os._exit(139)
        return batch | result_columns([(RankedLabel("fine", 0, 1.0),)] * len(batch["path"]))


def batch_of(rows: range) -> Columns:
    """Rows, one of which is deadly."""
    paths = ["deadly" if row == DEADLY else "good" for row in rows]
    return {"row": np.array(rows), "path": as_objects(paths)}


@pytest.mark.filterwarnings("ignore")  # of Ray
def test_an_image_that_ends_its_actor_is_a_row_and_all_others_are_classified() -> None:
    """Ray would try it again without end."""
    options = ClassifierOptions(Path("repository"), "fake", 1)
    engine = RayEngine(options, batch_of, address="local", actors=1, load=FakeClassifier)

    errors: dict[int, str] = {}
    for columns in engine.run(chunks_of([range(16)], 4)):
        errors |= dict(zip(columns["row"].tolist(), columns["error"].tolist(), strict=True))

    assert len(errors) == 16
    assert [row for row, error in errors.items() if error] == [DEADLY]
    assert errors[DEADLY].startswith("WORKER_DIED: ")
