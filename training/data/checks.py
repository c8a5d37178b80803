"""Checks a data set before training: undecodable files, duplicates, leaks between splits, missing classes.

Duplicates are images that are equal in every pixel in model geometry; near duplicates only look the same. The
test split is never changed: an image that repeats one of it is removed from the training or validation split.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
from pydantic import Field

from serving.bundle.manifest import Strict
from serving.counted import counted
from training.data.groups import count_ungrouped, groups_across
from training.data.near_duplicates import find_near_duplicates
from training.data.splits import Dataset, SourceData, Split
from training.errors import DataError
from training.recipe import DataRecipe

MIN_CLASSES = 2  # one class needs no classifier
MAX_NAMES = 6  # listed in a message; the count beside them is always complete


class DataReport(Strict):
    """What the checks found and what they did about it."""

    counts: Mapping[str, Mapping[str, int]] = Field(
        description="split -> label -> number of used images; a test-only set lists its test labels alone"
    )
    undecodable: Mapping[str, str] = Field(description="file -> reason; these files were skipped")
    ignored_files: int = Field(description="files that are not of a supported image type")
    ignored_types: Mapping[str, int] = Field(
        default_factory=dict, description="extension -> number of these files"
    )
    unlabelled: Mapping[str, int] = Field(
        default_factory=dict, description="directory -> images in it that are in no class directory; left out"
    )
    val_is_test: bool = Field(
        default=False, description="folder: there is no test directory, so `val` is the test split"
    )
    repeated: Mapping[str, int] = Field(
        description="split -> images equal to an earlier one of the split; kept"
    )
    removed: Mapping[str, tuple[str, ...]] = Field(
        description="split -> images removed because a later split holds them too"
    )
    conflicts: tuple[str, ...] = Field(description="pairs of equal images with different labels")
    near_duplicates: tuple[str, ...] = Field(
        default=(), description="pairs of images that look the same, within a split or across two"
    )
    near_leaks: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="split -> images that look like one of a later split"
    )
    near_leaks_removed: bool = Field(default=False, description="whether `near_leaks` were removed")
    test_near_leaks: int = Field(
        default=0, description="test images that look like a training or validation image which was kept"
    )
    groups_across: tuple[str, ...] = Field(
        default=(), description="groups in several splits, each with its splits; allowed by the recipe"
    )
    ungrouped: int = Field(default=0, description="images that data.group_pattern does not match")

    def notes(self) -> list[str]:
        """Describe in one line each what was decided about the splits."""
        lines = []
        if self.val_is_test:
            lines.append(
                "there is no test directory: val is the test split, and validation is split off train"
            )
        if self.ungrouped:
            images = sum(sum(counts.values()) for counts in self.counts.values())
            lines.append(
                f"data.group_pattern does not match {self.ungrouped} of {images} names: these images are "
                "independent"
            )
        return lines

    def warnings(self) -> list[str]:
        """Describe each finding in one line."""
        lines = []
        if self.undecodable:
            lines.append(
                f"{counted(len(self.undecodable), 'file')} skipped that cannot be decoded: "
                f"{_listed(list(self.undecodable))}"
            )
        lines += [
            f"{name} has {counted(count, 'image')} in no class directory, without a label: left out"
            for name, count in self.unlabelled.items()
        ]
        if self.ignored_files:
            types = f" ({_listed(list(self.ignored_types))})" if self.ignored_types else ""
            lines.append(f"{counted(self.ignored_files, 'file')} ignored{types}: not a supported image type")
        if self.groups_across:
            lines.append(
                f"images of {counted(len(self.groups_across), 'group')} are in several splits, so the test "
                "accuracy may be too "
                f"high (data.allow_groups_across_splits): {_listed(self.groups_across)}"
            )
        lines += [
            f"{counted(len(names), 'image')} removed from {split}, which a later split has too: "
            f"{_listed(names)}"
            for split, names in self.removed.items()
            if names
        ]
        lines += [
            f"{split} has {counted(count, 'duplicate')} of other images; they are kept"
            for split, count in self.repeated.items()
            if count
        ]
        if self.conflicts:
            lines.append(
                f"equal images have different labels, {counted(len(self.conflicts), 'pair')}: "
                f"{_listed(self.conflicts)}"
            )
        if self.near_duplicates:
            lines.append(
                f"images look the same, {counted(len(self.near_duplicates), 'pair')}: "
                f"{_listed(self.near_duplicates)}"
            )
        done = (
            "removed" if self.near_leaks_removed else "kept (data.near_duplicates=remove removes such images)"
        )
        lines += [
            f"{split} has {counted(len(names), 'image')} like one of a later split, {done}: {_listed(names)}"
            for split, names in self.near_leaks.items()
            if names
        ]
        return lines


def check(
    dataset: Dataset, source: SourceData, recipe: DataRecipe, cache: Path | None = None
) -> tuple[Dataset, DataReport]:
    """Remove leaks between splits, and reject data that cannot be trained or evaluated on.

    Args:
        dataset: the data set to check.
        source: what the splits were made from.
        recipe: which findings are errors, and which images are removed.
        cache: directory of found near duplicates, keyed by content; None: search every time.

    Returns: the data set without the removed images, and what was found.

    Raises:
        DataError: a file cannot be decoded, a group is in several splits, a class is missing, or the
            validation split is too small.
    """
    if recipe.strict and source.undecodable:
        listed = _listed([f"{name} ({why})" for name, why in source.undecodable.items()])
        raise DataError(
            f"{counted(len(source.undecodable), 'undecodable file')}, but data.strict=true allows none: "
            f"{listed}"
        )
    hashes = {name: _hashes(split) for name, split in dataset.splits().items()}
    conflicts = _conflicts(dataset, hashes)
    kept, removed = _without_leaks(dataset, hashes)
    across = _groups_across(kept, recipe)
    searches = recipe.near_duplicates != "ignore"
    pairs, near_leaks, test_leaks = _near_duplicates(kept, cache) if searches else ((), {}, 0)
    removes = recipe.near_duplicates == "remove"
    if removes:
        kept = _without_names(kept, near_leaks)
    kept = _remembering_removed(dataset, kept)
    only_judges = not len(dataset.train)
    counts = {name: _count(split, dataset.labels) for name, split in kept.splits().items()}
    if only_judges:
        counts = {"test": {label: count for label, count in counts["test"].items() if count}}
    report = DataReport(
        counts=counts,
        undecodable=source.undecodable,
        ignored_files=len(source.ignored),
        ignored_types=_count_types(source.ignored),
        unlabelled=source.unlabelled,
        val_is_test=source.val_is_test,
        repeated={
            name: _repeated(split, dataset.splits()[name], hashes[name])
            for name, split in kept.splits().items()
        },
        removed=removed,
        conflicts=conflicts,
        near_duplicates=pairs,
        near_leaks=near_leaks,
        near_leaks_removed=removes,
        test_near_leaks=0 if removes else test_leaks,
        groups_across=across,
        ungrouped=_ungrouped(kept, recipe),
    )
    if not only_judges:
        _require_two_classes(dataset.labels)
        _require_every_class(report, recipe, draws_validation=source.validation is None)
    return kept, report


def _hashes(split: Split) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in split.images]


def _repeated(kept: Split, split: Split, hashes: list[bytes]) -> int:
    """Count duplicates by hash, so that no image is read again."""
    hash_of = dict(zip(split.names, hashes, strict=True))
    return len(kept) - len({hash_of[name] for name in kept.names})


def _without_leaks(
    dataset: Dataset, hashes: Mapping[str, list[bytes]]
) -> tuple[Dataset, dict[str, tuple[str, ...]]]:
    test, validation = set(hashes["test"]), set(hashes["validation"])
    kept_train, lost_train = _without(dataset.train, hashes["train"], test | validation)
    kept_validation, lost_validation = _without(dataset.validation, hashes["validation"], test)
    kept = replace(dataset, train=kept_train, validation=kept_validation)
    return kept, {"train": lost_train, "validation": lost_validation}


def _groups_across(dataset: Dataset, recipe: DataRecipe) -> tuple[str, ...]:
    if recipe.group_pattern is None:
        return ()
    names = {name: split.names_in_split for name, split in dataset.splits().items()}
    across = groups_across(names, recipe.group_pattern)
    found = tuple(f"{group} ({', '.join(splits)})" for group, splits in across.items())
    if found and not recipe.allow_groups_across_splits:
        raise DataError(
            f"data.group_pattern puts {counted(len(found), 'group')} into several splits: {_listed(found)}. "
            "Move each "
            "into one split, or set data.allow_groups_across_splits=true"
        )
    return found


def _ungrouped(dataset: Dataset, recipe: DataRecipe) -> int:
    if recipe.group_pattern is None:
        return 0
    names = [name for split in dataset.splits().values() for name in split.names_in_split]
    return count_ungrouped(names, recipe.group_pattern)


def _near_duplicates(
    dataset: Dataset, cache: Path | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], int]:
    """Pairs by name, training and validation images like one of a later split, and how many of the test."""
    splits = dataset.splits()
    names = [name for split in splits.values() for name in split.names]
    order = {name: number for number, name in enumerate(splits)}
    split_of = [name for name, split in splits.items() for _ in split.labels]
    pairs = find_near_duplicates([split.images for split in splits.values()], cache)
    leaks: dict[str, list[str]] = {"train": [], "validation": []}
    for first, second in pairs:  # the first index never belongs to a later split than the second
        if order[split_of[first]] < order[split_of[second]]:
            leaks[split_of[first]].append(names[first])
    leaked = {second for first, second in pairs if split_of[second] == "test" and split_of[first] != "test"}
    named = tuple(f"{names[first]} and {names[second]}" for first, second in pairs)
    return named, {name: tuple(dict.fromkeys(leaking)) for name, leaking in leaks.items()}, len(leaked)


def _without_names(dataset: Dataset, unwanted: Mapping[str, tuple[str, ...]]) -> Dataset:
    def kept(split: Split, names: tuple[str, ...]) -> Split:
        leaving = set(names)
        return split.take(np.array([i for i, name in enumerate(split.names) if name not in leaving], np.intp))

    return replace(
        dataset,
        train=kept(dataset.train, unwanted.get("train", ())),
        validation=kept(dataset.validation, unwanted.get("validation", ())),
    )


def _remembering_removed(dataset: Dataset, kept: Dataset) -> Dataset:
    left = {name for split in kept.splits().values() for name in split.names}
    removed = {
        name: digest
        for split in dataset.splits().values()
        if split.digests
        for name, digest in zip(split.names, split.digests, strict=True)
        if name not in left
    }
    return replace(kept, removed=removed)


def _count_types(names: tuple[str, ...]) -> dict[str, int]:
    """Extensions of files, the most frequent first."""
    return dict(Counter(PurePath(name).suffix.lower() or "no extension" for name in names).most_common())


def _without(split: Split, hashes: list[bytes], unwanted: set[bytes]) -> tuple[Split, tuple[str, ...]]:
    leaks = np.array([digest in unwanted for digest in hashes], dtype=bool)
    if not leaks.any():
        return split, ()
    return split.take(np.flatnonzero(~leaks)), tuple(split.names[i] for i in np.flatnonzero(leaks))


def _conflicts(dataset: Dataset, hashes: Mapping[str, list[bytes]]) -> tuple[str, ...]:
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for name, split in dataset.splits().items():
        for digest, item, label in zip(hashes[name], split.names, split.labels.tolist(), strict=True):
            other, other_label = first.setdefault(digest, (item, label))
            if other_label != label:
                found.append(f"{other} is {dataset.labels[other_label]}, {item} is {dataset.labels[label]}")
    return tuple(found)


def _count(split: Split, labels: tuple[str, ...]) -> dict[str, int]:
    counted = Counter(split.labels.tolist())
    return {label: counted[index] for index, label in enumerate(labels)}


def _require_every_class(report: DataReport, recipe: DataRecipe, *, draws_validation: bool) -> None:
    for split, counts in report.counts.items():
        missing = [label for label, count in counts.items() if not count]
        if missing:
            raise DataError(
                f"the {split} split has 0 images of {_listed(missing)}, at least 1 of each is needed"
                f"{_why_missing(report, split)}"
            )
    label, count = min(report.counts["validation"].items(), key=lambda item: item[1])
    if count < recipe.min_validation_images_per_class:
        larger = (
            f", raise data.validation_fraction ({recipe.validation_fraction:g})" if draws_validation else ""
        )
        raise DataError(
            f"the validation split has {counted(count, 'image')} of {label}, "
            f"data.min_validation_images_per_class is {recipe.min_validation_images_per_class}: "
            f"too few to choose the best epoch by. Add images{larger} or lower this"
        )


def _require_two_classes(labels: tuple[str, ...]) -> None:
    if len(labels) < MIN_CLASSES:
        raise DataError(
            f"the data have {len(labels)} class ({_listed(labels)}), at least {MIN_CLASSES} are needed: add "
            "images of another"
        )


def _why_missing(report: DataReport, split: str) -> str:
    """Images that were there, and are not used."""
    reasons = []
    if removed := report.removed.get(split, ()):
        reasons.append(
            f"a later split has {counted(len(removed), 'image')} of {split} too, such as {removed[0]}"
        )
    if report.undecodable:
        name, why = next(iter(report.undecodable.items()))
        reasons.append(
            f"{counted(len(report.undecodable), 'file')} cannot be decoded, such as {name} ({why})"
        )
    return f": {'; '.join(reasons)}" if reasons else ""


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
