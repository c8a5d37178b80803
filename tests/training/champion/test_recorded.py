"""What champions recorded: complete, by earlier releases, by imports, and damaged."""

import json
from pathlib import Path

import pytest

from serving.bundle import Bundle, Description, Repository
from tests.colours import write_colours
from training.champion.recorded import Recorded, read_recorded_by


def _champion(repository: Repository, metrics: str | None, *, measured: bool = True) -> Bundle:
    def write(folder: Path) -> Description:
        described = write_colours(folder, rotate=0, lie=False)
        if metrics is not None:
            (folder / "report").mkdir()
            (folder / "report" / "metrics.json").write_text(metrics)
        return described if measured else described.model_copy(update={"evaluation": None})

    return repository.publish("colours", write)


def test_counts_accuracy_and_recalls_are_read(repository: Repository) -> None:
    """The recall of a label with fewer than ten test images says too little."""
    labels = [
        {"label": "red", "recall": 0.9, "images": 10},
        {"label": "green", "recall": 0.5, "images": 9},
    ]
    metrics = {"data": {"counts": {"train": {"red": 7}}}, "test": {"labels": labels}}
    recorded = read_recorded_by(_champion(repository, json.dumps(metrics)))
    assert recorded == Recorded({"red": 7}, 1.0, {"red": 0.9})


@pytest.mark.parametrize(
    "metrics",
    [None, "", "[]", "{}", '{"data": 3, "test": []}', '{"test": {"labels": [{"label": "red"}]}}'],
)
def test_what_is_missing_or_damaged_records_nothing(repository: Repository, metrics: str | None) -> None:
    """The accuracy is in the manifest, unless the version was imported without images."""
    assert read_recorded_by(_champion(repository, metrics)) == Recorded({}, 1.0, {})
    assert read_recorded_by(_champion(repository, metrics, measured=False)) == Recorded({}, None, {})
