"""Labelled images, and how they are divided into training, validation and test splits.

Image files are assigned to splits by a hash of their content, or of their group's name, and the seed: adding
images moves none. Other sources do not grow; their splits are drawn at random.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.counted import counted
from training.data.groups import choose_groups, find_groups
from training.data.hashed_splits import REST, HashedSplits, assign
from training.data.labels import Indices, Labels
from training.data.storage.disk_images import Images, feed_digest, take
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled images in model geometry, in memory or on disk."""

    images: Images  # (N, H, W, C) uint8
    labels: Labels  # (N,) int64, index into the data set's labels
    names: tuple[str, ...]  # N, for messages: the path below the data root, or the position in a file
    digests: tuple[bytes, ...] = ()  # N, SHA-256 of each file; empty if the images are not separate files
    directory: str = ""  # of the split, such as `train/`: the start of each name

    @property
    def names_in_split(self) -> tuple[str, ...]:
        """Names without the split's directory, in which groups are searched."""
        return tuple(name.removeprefix(self.directory) for name in self.names)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices | slice) -> "Split":
        """Select images by index, in the given order."""
        positions = range(len(self))[indices] if isinstance(indices, slice) else indices
        return Split(
            take(self.images, indices),
            self.labels[indices],
            tuple(self.names[i] for i in positions),
            tuple(self.digests[i] for i in positions) if self.digests else (),
            self.directory,
        )


@dataclass(frozen=True, slots=True)
class SourceData:
    """What a data source holds. A split that was not published is None."""

    labels: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    undecodable: Mapping[str, str] = field(default_factory=dict)  # name -> reason
    ignored: tuple[str, ...] = ()  # files that are not of a supported image type
    unlabelled: Mapping[str, int] = field(default_factory=dict)  # directory -> images without a class
    val_is_test: bool = False  # the test split was published as the validation split, without a test split


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three splits. After `checks.check` they share no image."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    removed: Mapping[str, bytes] = field(default_factory=dict)  # name -> SHA-256 of the file; by the checks

    def splits(self) -> dict[str, Split]:
        """Splits by name: train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def digest(self) -> str:
        """SHA-256 over all images, labels and label names, as 64 hexadecimal digits."""
        sha = hashlib.sha256(repr(self.labels).encode())
        for name, split in self.splits().items():
            sha.update(f"{name} {split.images.shape}".encode())
            feed_digest(sha.update, [split.images])
            sha.update(split.labels.astype("<i8").tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """The images that a published version is evaluated on."""

    labels: tuple[str, ...]
    images: Split
    is_test_split: bool = True  # else all images of a directory, which the version may have been trained on
    undecodable: Mapping[str, str] = field(default_factory=dict)  # name -> reason


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How splits are made where the source has none."""

    test_fraction: float  # 0..1, of all images
    validation_fraction: float  # 0..1, of the images that remain for training
    seed: int
    group_pattern: str | None = None  # finds an image's group in its name; a group stays in one split
    min_validation: int = 1  # images of each class

    def fraction(self, split: str) -> float:
        """The fraction of the test or validation split."""
        return self.test_fraction if split == "test" else self.validation_fraction


def make_splits(source: SourceData, options: SplitOptions) -> Dataset:
    """Split off a test and a validation split where the source has none.

    Raises:
        DataError: a class has too few images in a split, or the pattern matches no name.
        RecipeError: the pattern is not a valid regular expression.
    """
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    missing = [name for name in ("test", "validation") if splits[name] is None]
    if missing and source.train.digests:
        splits |= _by_content(source.train, source.labels, missing, options)
    else:
        for name in missing:
            splits |= _at_random(splits["train"] or source.train, source.labels, name, options)
    train, validation, test = splits.values()
    if train is None or validation is None or test is None:
        raise AssertionError("all splits were just filled. This is a bug.")
    return Dataset(source.labels, train, validation, test)


def _by_content(
    split: Split, labels: Sequence[str], missing: Sequence[str], options: SplitOptions
) -> dict[str, Split]:
    """Divide a split by a hash; each part keeps the order of the images."""
    keys: Sequence[bytes] = split.digests
    if options.group_pattern is not None:
        names = split.names_in_split
        groups = find_groups(names, options.group_pattern)
        _require_several(groups, len(missing) + 1, options.group_pattern)
        # An image that is in no group has its name for a group, which changes when the file is moved.
        keys = [
            digest if group == name else group.encode()
            for group, name, digest in zip(groups, names, split.digests, strict=True)
        ]
    fractions = {name: options.fraction(name) for name in missing}
    HashedSplits(fractions, options.seed, options.min_validation).require_enough(keys, split.labels, labels)
    assigned = assign(keys, fractions, options.seed)
    return {name: split.take(np.flatnonzero(assigned == i)) for i, name in enumerate((*fractions, REST))}


def _require_several(groups: Sequence[str], splits: int, pattern: str) -> None:
    found = sorted(set(groups))
    if len(found) < splits:
        raise DataError(
            f"data.group_pattern {pattern!r} puts {counted(len(groups), 'image')} into "
            f"{counted(len(found), 'group')} ({', '.join(found)}), at least {splits} are needed "
            f"for {splits} splits: let it match what differs from group to group, such as a patient's number"
        )


def _at_random(split: Split, labels: Sequence[str], name: str, options: SplitOptions) -> dict[str, Split]:
    """Divide a split in two, stratified by class; both parts keep the order of the images."""
    fraction, pattern = options.fraction(name), options.group_pattern
    random = np.random.default_rng(options.seed)
    chosen = np.zeros(len(split), dtype=bool)
    if pattern is not None:
        chosen[choose_groups(split.labels, find_groups(split.names_in_split, pattern), fraction, random)] = (
            True
        )
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = round(len(members) * fraction) if pattern is None else int(chosen[members].sum())
        if not 0 < count < len(members):
            raise DataError(
                f"class {labels[label]} has {counted(len(members), 'image')}: taking {fraction:.0%} of them "
                f"(data.{name}_fraction) for the {name} split leaves one side empty. Add images of this class"
            )
        if pattern is None:
            chosen[random.choice(members, count, replace=False)] = True
    return {REST: split.take(np.flatnonzero(~chosen)), name: split.take(np.flatnonzero(chosen))}


__all__ = [
    "Dataset",
    "EvaluationData",
    "Indices",
    "Labels",
    "SourceData",
    "Split",
    "SplitOptions",
    "make_splits",
]
