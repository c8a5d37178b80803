"""Which images belong together, by their names: all those of one patient, say. They stay in one split."""

import re
from collections.abc import Sequence

import numpy as np

from training.data.labels import Indices, Labels
from training.errors import DataError, RecipeError


def groups_of(names: Sequence[str], pattern: str) -> list[str]:
    """The group of each name: the first group of the pattern's match, or the whole match.

    An image whose name has no match is a group of its own.

    Raises:
        RecipeError: the pattern is not a regular expression.
        DataError: it matches nothing at all, so it is not the pattern of these names.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"data.group_pattern {pattern!r} is not a regular expression: {error}") from error
    matches = [compiled.search(name) for name in names]
    if names and not any(matches):
        raise DataError(
            f"data.group_pattern {pattern!r} matches none of {len(names)} names, {names[0]!r} say"
        )
    return [
        name if match is None else match[1] if compiled.groups and match[1] is not None else match[0]
        for name, match in zip(names, matches, strict=True)
    ]


def choose_groups(
    labels: Labels, groups: Sequence[str], fraction: float, random: np.random.Generator
) -> Indices:
    """Indices of whole groups that hold about this fraction of each class.

    Groups are taken in a random order, each where it brings the shares nearer to the fraction.

    Args:
        labels: (N,)
        groups: N names.
        fraction: 0..1.
        random: draws the order.
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
