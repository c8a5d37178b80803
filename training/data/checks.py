"""Data are checked before the first step: a flaw found here costs seconds, one found later a result.

Duplicates are images whose every pixel is the same once they are in model geometry; near duplicates look the
same. The test split is never changed: whatever repeats one of its images leaves training and validation.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from serving.bundle.manifest import Strict
from training.data.near_duplicates import find_near_duplicates
from training.data.splits import Dataset, SourceData, Split
from training.errors import DataError
from training.recipe import DataRecipe

MAX_NAMES = 20  # that a report or a message lists; the count is always whole


class DataReport(Strict):
    """What the checks found and what they did about it."""

    counts: Mapping[str, Mapping[str, int]] = Field(
        description="split -> label -> images that are used; of a set that only judges, its labels alone"
    )
    undecodable: Mapping[str, str] = Field(description="file -> why; left out")
    ignored_files: int = Field(description="files whose names are not of a supported image type")
    repeated: Mapping[str, int] = Field(description="split -> images equal to an earlier one in it; kept")
    removed: Mapping[str, tuple[str, ...]] = Field(
        description="split -> images taken out because a later split holds them too"
    )
    conflicts: tuple[str, ...] = Field(description="pairs of equal images with different labels")
    near_duplicates: tuple[str, ...] = Field(
        default=(), description="pairs of images that look the same, in one split or in two"
    )
    near_leaks: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="split -> images of it that look like one of a later split"
    )
    near_leaks_removed: bool = Field(default=False, description="whether those were taken out")

    def warnings(self) -> list[str]:
        """One line for everything that a person should look at."""
        lines = []
        if self.undecodable:
            lines.append(
                f"{len(self.undecodable)} undecodable files left out: {_listed(list(self.undecodable))}"
            )
        if self.ignored_files:
            lines.append(
                f"{self.ignored_files} files were ignored: their names are not of a supported image type"
            )
        lines += [
            f"{len(names)} images taken out of {split}, since a later split holds them too: {_listed(names)}"
            for split, names in self.removed.items()
            if names
        ]
        lines += [
            f"{count} images of {split} repeat another one" for split, count in self.repeated.items() if count
        ]
        if self.conflicts:
            lines.append(
                f"{len(self.conflicts)} equal images with different labels: {_listed(self.conflicts)}"
            )
        if self.near_duplicates:
            lines.append(
                f"{len(self.near_duplicates)} pairs of images look the same: {_listed(self.near_duplicates)}"
            )
        done = "were taken out" if self.near_leaks_removed else "were left in (data.near_duplicates=remove)"
        lines += [
            f"{len(names)} images of {split} look like one of a later split and {done}: {_listed(names)}"
            for split, names in self.near_leaks.items()
            if names
        ]
        return lines


def check(
    dataset: Dataset, source: SourceData, recipe: DataRecipe, cache: Path | None = None
) -> tuple[Dataset, DataReport]:
    """Take out what would spoil the result, and refuse what cannot give one.

    Args:
        dataset: to be checked.
        source: from which it was divided.
        recipe: says what is refused and what is taken out.
        cache: folder of verdicts by content; none: judged anew.

    Raises:
        DataError: names the split, the class or the file, with both numbers.
    """
    if recipe.strict and source.undecodable:
        listed = _listed([f"{name} ({why})" for name, why in source.undecodable.items()])
        raise DataError(f"{len(source.undecodable)} undecodable files, data.strict allows 0: {listed}")
    hashes = {name: _hashes(split) for name, split in dataset.parts().items()}
    conflicts = _conflicts(dataset, hashes)
    kept, removed = _without_leaks(dataset, hashes)
    pairs, near_leaks = _near_duplicates(kept, cache) if recipe.near_duplicates != "ignore" else ((), {})
    removes = recipe.near_duplicates == "remove"
    if removes:
        kept = _without_names(kept, near_leaks)
    only_judges = not len(dataset.train)
    counts = {name: _count(split, dataset.labels) for name, split in kept.parts().items()}
    if only_judges:
        counts = {"test": {label: count for label, count in counts["test"].items() if count}}
    report = DataReport(
        counts=counts,
        undecodable=source.undecodable,
        ignored_files=len(source.ignored),
        repeated={
            name: _repeated(split, dataset.parts()[name], hashes[name])
            for name, split in kept.parts().items()
        },
        removed=removed,
        conflicts=conflicts,
        near_duplicates=pairs,
        near_leaks=near_leaks,
        near_leaks_removed=removes,
    )
    if not only_judges:
        _require_every_class(report, recipe.min_validation_images_per_class)
    return kept, report


def _hashes(split: Split) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in split.images]


def _repeated(kept: Split, split: Split, hashes: list[bytes]) -> int:
    """How many of the images that are kept equal another one; each image is read once and never again."""
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


def _near_duplicates(
    dataset: Dataset, cache: Path | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Pairs by name, and the images of train and validation that look like one of a later split."""
    parts = dataset.parts()
    names = [name for split in parts.values() for name in split.names]
    order = {name: number for number, name in enumerate(parts)}
    split_of = [name for name, split in parts.items() for _ in split.labels]
    pairs = find_near_duplicates([split.images for split in parts.values()], cache)
    leaks: dict[str, list[str]] = {"train": [], "validation": []}
    for first, second in pairs:  # the first is never of a later split than the second
        if order[split_of[first]] < order[split_of[second]]:
            leaks[split_of[first]].append(names[first])
    named = tuple(f"{names[first]} and {names[second]}" for first, second in pairs)
    return named, {name: tuple(dict.fromkeys(leaking)) for name, leaking in leaks.items()}


def _without_names(dataset: Dataset, unwanted: Mapping[str, tuple[str, ...]]) -> Dataset:
    def kept(split: Split, names: tuple[str, ...]) -> Split:
        leaving = set(names)
        return split.take(np.array([i for i, name in enumerate(split.names) if name not in leaving], np.intp))

    return replace(
        dataset,
        train=kept(dataset.train, unwanted.get("train", ())),
        validation=kept(dataset.validation, unwanted.get("validation", ())),
    )


def _without(split: Split, hashes: list[bytes], unwanted: set[bytes]) -> tuple[Split, tuple[str, ...]]:
    leaks = np.array([digest in unwanted for digest in hashes], dtype=bool)
    if not leaks.any():
        return split, ()
    return split.take(np.flatnonzero(~leaks)), tuple(split.names[i] for i in np.flatnonzero(leaks))


def _conflicts(dataset: Dataset, hashes: Mapping[str, list[bytes]]) -> tuple[str, ...]:
    first: dict[bytes, tuple[str, int]] = {}
    found = []
    for name, split in dataset.parts().items():
        for digest, item, label in zip(hashes[name], split.names, split.labels.tolist(), strict=True):
            other, other_label = first.setdefault(digest, (item, label))
            if other_label != label:
                found.append(f"{other} is {dataset.labels[other_label]}, {item} is {dataset.labels[label]}")
    return tuple(found)


def _count(split: Split, labels: tuple[str, ...]) -> dict[str, int]:
    counted = Counter(split.labels.tolist())
    return {label: counted[index] for index, label in enumerate(labels)}


def _require_every_class(report: DataReport, min_validation_images_per_class: int) -> None:
    for split, counts in report.counts.items():
        missing = [label for label, count in counts.items() if not count]
        if missing:
            raise DataError(f"the {split} split has 0 images of {_listed(missing)}, at least 1 is needed")
    label, count = min(report.counts["validation"].items(), key=lambda item: item[1])
    if count < min_validation_images_per_class:
        raise DataError(
            f"the validation split has {count} images of {label}, "
            f"data.min_validation_images_per_class is {min_validation_images_per_class}: "
            "too few to choose the best epoch with. Add images, raise data.validation_fraction or lower this"
        )


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
