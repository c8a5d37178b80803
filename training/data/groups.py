"""Groups of images that must stay in one split, such as all images of one patient, found by file name."""

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import numpy as np

from serving.counted import counted
from training.data.labels import Indices, Labels
from training.errors import DataError, RecipeError

_MOST_SECONDS = 30.0  # of a search; a million names take three


def find_groups(names: Sequence[str], pattern: str, most_seconds: float = _MOST_SECONDS) -> list[str]:
    """Find the group of each image by its name.

    A group's key is the first capturing group of the pattern, or else its whole match. An image whose name
    does not match, or only with nothing, forms a separate group, whose key is its name.

    Args:
        names: of the images, without the directory of their split, which would keep a group's images apart.
        pattern: a regular expression, searched in each name.
        most_seconds: limit of the search.

    Raises:
        RecipeError: the pattern is not a valid regular expression, or takes too long.
        DataError: the pattern matches none of the names.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"data.group_pattern {pattern!r} is not a valid regular expression: {error}"
        ) from error
    with _limited(most_seconds, pattern):
        keys = [_key(compiled.search(name)) for name in names]
    if names and not any(keys):
        raise DataError(
            f"data.group_pattern {pattern!r} matches none of {counted(len(names), 'name')}, such as "
            f"{names[0]!r}"
        )
    return [key or name for key, name in zip(keys, names, strict=True)]


def _key(match: re.Match[str] | None) -> str:
    if match is None:
        return ""
    return match[1] if match.re.groups and match[1] is not None else match[0]


@contextmanager
def _limited(seconds: float, pattern: str) -> Iterator[None]:
    """Interrupt a search that takes too long: some patterns need time exponential in a name's length."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        raise RecipeError(
            f"data.group_pattern {pattern!r} takes more than {seconds:g} s: avoid nested repetition, as in "
            "(a+)+"
        )

    handler = signal.signal(signal.SIGALRM, stop)
    waiting, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, waiting, interval)
        signal.signal(signal.SIGALRM, handler)


def groups_across(names: Mapping[str, Sequence[str]], pattern: str) -> dict[str, tuple[str, ...]]:
    """Find the groups that are in several splits.

    Args:
        names: split -> the names of its images, without the directory of the split.
        pattern: as for `find_groups`.

    Returns: group -> its splits; empty if each group is in one split. Images that do not match stand alone.

    Raises:
        RecipeError, DataError: as for `find_groups`.
    """
    groups = iter(find_groups([name for some in names.values() for name in some], pattern))
    splits: dict[str, dict[str, None]] = {}  # the inner keys are an ordered set
    for split, some in names.items():
        for name in some:
            if (group := next(groups)) != name:
                splits.setdefault(group, {})[split] = None
    return {group: tuple(found) for group, found in splits.items() if len(found) > 1}


def count_ungrouped(names: Sequence[str], pattern: str) -> int:
    """Number of names that the pattern does not match, or matches as a whole. Raises as `find_groups`."""
    return sum(group == name for group, name in zip(find_groups(names, pattern), names, strict=True))


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
