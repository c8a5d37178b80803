"""Labelled images, and how they are divided into training, validation and test splits."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from training.data.groups import choose_groups, find_groups
from training.data.labels import Indices, Labels
from training.data.storage.disk_images import Images, feed_digest, take
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled images in model geometry, in memory or on disk."""

    images: Images  # (N, H, W, C) uint8
    labels: Labels  # (N,) int64, index into the data set's labels
    names: tuple[str, ...]  # N, for messages: the path below the data root, or the position in a file

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices | slice) -> "Split":
        """Select images by index, in the given order."""
        positions = range(len(self))[indices] if isinstance(indices, slice) else indices
        return Split(
            take(self.images, indices), self.labels[indices], tuple(self.names[i] for i in positions)
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


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three splits. After `checks.check` they share no image."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

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


def make_splits(
    source: SourceData,
    *,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    group_pattern: str | None = None,
) -> Dataset:
    """Split off a test and a validation split where the source has none, stratified by class.

    Args:
        source: the images, with the splits that were published.
        test_fraction: 0..1, of all images.
        validation_fraction: 0..1, of the images that remain for training.
        seed: chooses the images.
        group_pattern: regular expression that finds an image's group in its name; a group stays in one split.

    Raises:
        DataError: a class has too few images for every split, or the pattern matches no name.
        RecipeError: the pattern is not a valid regular expression.
    """
    if source.test is None:
        train, test = _split_off(source, test_fraction, seed, "test", group_pattern)
        source = replace(source, train=train, test=test)
    if source.validation is None:
        train, validation = _split_off(source, validation_fraction, seed, "validation", group_pattern)
        source = replace(source, train=train, validation=validation)
    if source.validation is None or source.test is None:
        raise AssertionError("all splits were just filled. This is a bug.")
    return Dataset(source.labels, source.train, source.validation, source.test)


def _split_off(
    source: SourceData, fraction: float, seed: int, name: str, group_pattern: str | None
) -> tuple[Split, Split]:
    """Divide the training split in two; both keep the order of the images."""
    split = source.train
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(split), dtype=bool)
    if group_pattern is not None:
        chosen[choose_groups(split.labels, find_groups(split.names, group_pattern), fraction, random)] = True
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = round(len(members) * fraction) if group_pattern is None else int(chosen[members].sum())
        if not 0 < count < len(members):
            raise DataError(
                f"class {source.labels[label]} has {len(members)} images: taking {fraction:.0%} of them "
                f"(data.{name}_fraction) for the {name} split leaves one side empty. Add images of this class"
            )
        if group_pattern is None:
            chosen[random.choice(members, count, replace=False)] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


__all__ = ["Dataset", "Indices", "Labels", "SourceData", "Split", "make_splits"]
