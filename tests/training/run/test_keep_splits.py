"""What a run says of its images before it trains, compared with those of the champion."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from serving.bundle import Description, Repository
from tests.colours import LABELS, SIDE, write_colours
from training.champion.known_images import KNOWN_IMAGES_FILE, write_known_images
from training.data import Dataset
from training.data.assignment import SPLITS_FILE, write_assignment
from training.data.splits import Split
from training.recipe import ChampionRecipe
from training.run.display import Display
from training.run.keep_splits import keep_splits

MODEL = "colours"


def _split(count: int, seed: int, *, files: bool) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)  # (N, H, W, C)
    names = tuple(f"{seed}-{number}" for number in range(count))
    digests = tuple(f"{name:>032}".encode() for name in names) if files else ()
    return Split(images, np.arange(count, dtype=np.int64) % len(LABELS), names, digests)


def _dataset(*, files: bool) -> Dataset:
    return Dataset(LABELS, _split(60, 1, files=files), _split(30, 2, files=files), _split(30, 3, files=files))


def _publish(repository: Repository, dataset: Dataset) -> None:
    def write(folder: Path) -> Description:
        (folder / "report").mkdir()
        write_known_images(dataset, folder / "report" / KNOWN_IMAGES_FILE)
        if dataset.test.digests:
            write_assignment(dataset, folder / "report" / SPLITS_FILE)
        return write_colours(folder, rotate=0, lie=False)

    repository.publish(MODEL, write)


def _said(repository: Repository, dataset: Dataset, folder: Path) -> list[str]:
    written = io.StringIO()
    display = Display(Console(file=written, width=500))
    keep_splits(dataset, folder / "report", repository, MODEL, ChampionRecipe(), display)
    assert (folder / "report" / KNOWN_IMAGES_FILE).exists()
    assert (folder / "report" / SPLITS_FILE).exists() is bool(dataset.test.digests)
    return written.getvalue().splitlines()


def test_nothing_is_said_of_a_first_version(repository: Repository, tmp_path: Path) -> None:
    """It has no champion."""
    assert _said(repository, _dataset(files=True), tmp_path) == []


def test_moves_that_spare_the_test_split_are_no_warning(repository: Repository, tmp_path: Path) -> None:
    """The accuracies of both can be compared."""
    dataset = _dataset(files=True)
    _publish(repository, dataset)
    moved = replace(dataset, train=dataset.validation, validation=dataset.train)
    assert _said(repository, moved, tmp_path) == [
        (
            "since colours version 1: train gained 0 images, validation 0, test 0; moved: 30 from validation "
            "to train, 60 from train to validation"
        )
    ]
    (said,) = _said(repository, replace(dataset, train=dataset.test, test=dataset.train), tmp_path)
    assert said.startswith("! since colours version 1: ")
    assert "cannot be compared" in said


def test_test_images_that_the_champion_knows_are_counted(repository: Repository, tmp_path: Path) -> None:
    """Arrays have no names by which they could be said to have moved."""
    dataset = _dataset(files=False)
    _publish(repository, replace(dataset, train=dataset.test, test=dataset.train))
    assert _said(repository, dataset, tmp_path) == [
        "! since colours version 1: it was trained on 30 of 30 test images, which leave the comparison"
    ]


def test_labels_that_changed_are_said_of_arrays_too(repository: Repository, tmp_path: Path) -> None:
    """Before hours of training."""
    dataset = _dataset(files=False)
    _publish(repository, dataset)
    exchanged = replace(dataset.train, labels=np.array([1, 0, 2])[dataset.train.labels])
    assert _said(repository, replace(dataset, train=exchanged), tmp_path) == [
        (
            "! since colours version 1: 40 of 120 known images have another label: 'green' is now 'red' "
            "(20), 'red' is now 'green' (20). Without --force, this version becomes a candidate at most "
            "(champion.max_relabelled)"
        )
    ]


def test_other_labels_are_said(repository: Repository, tmp_path: Path) -> None:
    """A class was renamed."""
    dataset = _dataset(files=True)
    _publish(repository, dataset)
    first, *_ = _said(repository, replace(dataset, labels=("red", "green", "violet")), tmp_path)
    assert first == (
        "! since colours version 1: labels: 1 new (violet); 1 missing (blue). Without --force, this version "
        "becomes a candidate at most"
    )
