"""Images with their labels, and how they are divided. Knows no source and no network."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from training.data.groups import choose_groups, groups_of
from training.data.labels import Indices, Labels
from training.data.storage.disk_images import Images, feed_digest, take
from training.errors import DataError


@dataclass(frozen=True, slots=True)
class Split:
    """Images in model geometry, in memory or on disk."""

    images: Images  # (N, H, W, C) uint8
    labels: Labels  # (N,) index into the dataset's labels
    names: tuple[str, ...]  # N, for messages: a path below the data root, or a number in a file

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices | slice) -> "Split":
        """The part at these indices, in their order."""
        positions = range(len(self))[indices] if isinstance(indices, slice) else indices
        return Split(
            take(self.images, indices), self.labels[indices], tuple(self.names[i] for i in positions)
        )


@dataclass(frozen=True, slots=True)
class SourceData:
    """What a source found: a split that it does not have by itself is None."""

    labels: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    undecodable: Mapping[str, str] = field(default_factory=dict)  # name -> why
    ignored: tuple[str, ...] = ()  # files whose names are not of a supported image type


@dataclass(frozen=True, slots=True)
class Dataset:
    """Three splits that share no image once they are checked."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def parts(self) -> dict[str, Split]:
        """Name -> split, in the order in which they are used."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def digest(self) -> str:
        """SHA-256 of every image and label that is used, and of the labels' names."""
        sha = hashlib.sha256(repr(self.labels).encode())
        for name, split in self.parts().items():
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
    """Split off what the source does not have by itself, each class in proportion.

    Args:
        source: what the source has.
        test_fraction: of all images.
        validation_fraction: of the training images.
        seed: which images go where.
        group_pattern: finds in a name what images of one group share; a group stays in one split.

    Raises:
        DataError: a class has too few images to be in every split.
        RecipeError: the pattern is not a regular expression.
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
    """Divide training into what stays and what is split off; the order of the images is kept in both."""
    split = source.train
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(split), dtype=bool)
    if group_pattern is not None:
        chosen[choose_groups(split.labels, groups_of(split.names, group_pattern), fraction, random)] = True
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = round(len(members) * fraction) if group_pattern is None else int(chosen[members].sum())
        if not 0 < count < len(members):
            raise DataError(
                f"class {source.labels[label]} has {len(members)} images: {fraction:.0%} of them "
                f"(data.{name}_fraction) for the {name} split leaves one side empty"
            )
        if group_pattern is None:
            chosen[random.choice(members, count, replace=False)] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


__all__ = ["Dataset", "Indices", "Labels", "SourceData", "Split", "make_splits"]
