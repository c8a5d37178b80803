"""Keeps the splits of a run beside its report, and says what became of those of the version before."""

from pathlib import Path

from serving.bundle import Repository
from training.champion.known_images import KNOWN_IMAGES_FILE, write_known_images
from training.data import Dataset
from training.data.assignment import (
    SPLITS_FILE,
    assignment_of,
    compare,
    read_assignment,
    write_assignment,
)
from training.run.display import Display


def keep_splits(dataset: Dataset, report: Path, repository: Repository, model: str, display: Display) -> None:
    """Write splits.csv, and compare it with that of the newest version; for arrays known-images.npy."""
    now = assignment_of(dataset)
    report.mkdir(parents=True, exist_ok=True)
    if not now:
        write_known_images(dataset, report / KNOWN_IMAGES_FILE)
        return
    write_assignment(dataset, report / SPLITS_FILE)
    versions = repository.versions(model)
    if not versions:
        return
    newest = f"{model} version {versions[-1]}"
    earlier = read_assignment(repository.folder(model, versions[-1]) / "report" / SPLITS_FILE)
    if not earlier:
        display.note(f"{newest} does not record its splits: images may have moved between splits since then")
        return
    found = compare(earlier, now)
    if found.moved:
        display.warning(
            f"since {newest}: {found}. The test accuracies of the two cannot be compared: keep "
            "data.split_seed, the fractions and data.group_pattern, or publish under another --name"
        )
    else:
        display.note(f"since {newest}: {found}")
