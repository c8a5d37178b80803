"""Groups of images that must stay in one split, such as all images of one patient, found by file name."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from training.data.labels import Indices, Labels
from training.errors import DataError, RecipeError


def find_groups(names: Sequence[str], pattern: str) -> list[str]:
    """Find the group of each image by its name.

    A group's key is the first capturing group of the pattern, or else its whole match. An image whose name
    does not match forms a separate group.

    Raises:
        RecipeError: the pattern is not a valid regular expression.
        DataError: the pattern matches none of the names.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"data.group_pattern {pattern!r} is not a valid regular expression: {error}"
        ) from error
    matches = [compiled.search(name) for name in names]
    if names and not any(matches):
        raise DataError(
            f"data.group_pattern {pattern!r} matches none of {len(names)} names, such as {names[0]!r}"
        )
    return [
        name if match is None else match[1] if compiled.groups and match[1] is not None else match[0]
        for name, match in zip(names, matches, strict=True)
    ]


def groups_across(names: Mapping[str, Sequence[str]], pattern: str) -> dict[str, tuple[str, ...]]:
    """Find the groups that are in several splits.

    Args:
        names: split -> the names of its images.
        pattern: as for `find_groups`.

    Returns: group -> its splits; empty if each group is in one split.

    Raises:
        RecipeError, DataError: as for `find_groups`.
    """
    groups = iter(find_groups([name for some in names.values() for name in some], pattern))
    splits: dict[str, dict[str, None]] = {}  # the inner keys are an ordered set
    for split, some in names.items():
        for _ in some:
            splits.setdefault(next(groups), {})[split] = None
    return {group: tuple(found) for group, found in splits.items() if len(found) > 1}


def choose_groups(
    labels: Labels, groups: Sequence[str], fraction: float, random: np.random.Generator
) -> Indices:
    """Choose whole groups that together hold about this fraction of each class.

    Greedy: groups are visited in random order, and one is taken if it brings the counts of the classes
    nearer to the fraction.

    Args:
        labels: (N,) int64.
        groups: the group key of each image, N.
        fraction: 0..1.
        random: shuffles the groups.

    Returns: (n,) indices of the images of the chosen groups, ascending.
    """
    classes = int(labels.max()) + 1
    names, member_of = np.unique(np.asarray(groups), return_inverse=True)  # (G,), (N,)
    counts = np.zeros((len(names), classes))  # (G, K) images
    np.add.at(counts, (member_of, labels), 1)
    wanted = np.bincount(labels, minlength=classes) * fraction  # (K,)
    taken, chosen = np.zeros(classes), np.zeros(len(names), dtype=bool)
    for group in random.permutation(len(names)):
        with_it = taken + counts[group]
        if np.abs(with_it - wanted).sum() < np.abs(taken - wanted).sum():
            taken, chosen[group] = with_it, True
    return np.flatnonzero(chosen[member_of])
