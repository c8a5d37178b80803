"""Keeps the splits of a run beside its report, and says what became of those of the champion."""

from pathlib import Path

from serving.bundle import STABLE_ALIAS, Bundle, Repository
from serving.counted import counted
from serving.errors import LenserveError
from serving.limited_files import describe_failure
from training.champion.compare import find_champion, other_labels
from training.champion.judge import is_relabelled
from training.champion.knowledge import knowledge_of, relabelled_since
from training.champion.known_images import KNOWN_IMAGES_FILE, write_known_images
from training.data import Dataset
from training.data.assignment import (
    SPLITS_FILE,
    Assignment,
    assignment_of,
    compare,
    read_assignment,
    write_assignment,
)
from training.recipe import ChampionRecipe
from training.run.display import Display


def keep_splits(  # noqa: PLR0917 - the data, and where the champion is
    dataset: Dataset,
    report: Path,
    repository: Repository,
    model: str,
    limits: ChampionRecipe,
    display: Display,
) -> None:
    """Write known-images.npy, and splits.csv for files; compare them with those of the champion."""
    report.mkdir(parents=True, exist_ok=True)
    write_known_images(dataset, report / KNOWN_IMAGES_FILE)
    if assignment_of(dataset):
        write_assignment(dataset, report / SPLITS_FILE)
    try:
        champion = find_champion(repository, model, repository.aliases(model).get(STABLE_ALIAS))
    except (LenserveError, OSError) as error:
        display.warning(
            f"the champion cannot be read: {describe_failure(error)}. Without --force, this version becomes "
            "a candidate at most"
        )
        return
    if champion is not None:
        _compare(dataset, champion, limits, display)


def _compare(dataset: Dataset, champion: Bundle, limits: ChampionRecipe, display: Display) -> None:
    since = f"since {champion.model} version {champion.version}"
    if other := other_labels(dataset.labels, champion.manifest.labels):
        display.warning(
            f"{since}: labels: {other}. Without --force, this version becomes a candidate at most"
        )
    if now := assignment_of(dataset):
        _compare_splits(champion, now, since, display)
    elif left_out := len(dataset.test) - len(knowledge_of(champion, dataset, dataset.test.images).new):
        display.warning(
            f"{since}: it was trained on {left_out:,} of {counted(len(dataset.test), 'test image')}, which "
            "leave the comparison"
        )
    relabelled = relabelled_since(champion, dataset)
    if relabelled is None:
        return
    if is_relabelled(relabelled, limits):
        display.warning(
            f"{since}: {relabelled}. Without --force, this version becomes a candidate at most "
            "(champion.max_relabelled)"
        )
    elif relabelled.changes:
        display.note(f"{since}: {relabelled}")


def _compare_splits(champion: Bundle, now: Assignment, since: str, display: Display) -> None:
    earlier = read_assignment(champion.folder / "report" / SPLITS_FILE)
    if not earlier:
        display.note(
            f"{champion.model} version {champion.version} does not record its splits: images may have moved "
            "between splits since then"
        )
        return
    found = compare(earlier, now)
    if any("test" in splits for splits in found.moved):
        display.warning(
            f"{since}: {found}. The test accuracies of the two cannot be compared: keep "
            "data.split_seed, the fractions and data.group_pattern, or publish under another --name"
        )
    else:
        display.note(f"{since}: {found}")
