"""Finds images whose labels have changed since an earlier version. Does not know how they are recognized."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from serving.counted import counted
from training.data.labels import label_named

_MAX_NAMED = 4  # pairs of labels in a message

SEVERAL = "several labels"

Key = TypeVar("Key", bytes, int)  # recognizes an image


@dataclass(frozen=True, slots=True)
class Relabelled:
    """The images that an earlier version knows too, by their labels. Equal images count once."""

    known: Mapping[str, int]  # label then -> images
    changed: Mapping[tuple[str, str], int]  # label then, label now -> images; the most frequent first

    @property
    def images(self) -> int:
        """Images that the earlier version knows."""
        return sum(self.known.values())

    @property
    def changes(self) -> int:
        """Images whose label has changed."""
        return sum(self.changed.values())

    def largest_share(self, min_images: int) -> float:
        """Return the share of changed images: of all, or of those with one label then or now, 0..1.

        Args:
            min_images: fewer do not count, unless they are all images that a label had.
        """
        lost: Counter[str] = Counter()
        gained: Counter[str] = Counter()
        for (then, now), images in self.changed.items():
            lost[then] += images
            gained[now] += images
        shares = [self.changes / self.images] if self.changes >= min_images else []
        for then, images in lost.items():
            if images >= min_images or 1 < images == self.known[then]:
                shares.append(images / self.known[then])
        for now, images in gained.items():
            if images >= min_images and now != SEVERAL:
                shares.append(images / (self.known.get(now, 0) - lost[now] + images))
        return max(shares, default=0.0)

    def __str__(self) -> str:
        """One line without the name of the version."""
        if not self.changes:
            return f"none of {counted(self.images, 'known image')} has another label"
        named = [
            f"{then!r} is now {SEVERAL if now == SEVERAL else repr(now)} ({images:,})"
            for (then, now), images in self.changed.items()
        ]
        more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        have = "has" if self.changes == 1 else "have"
        return (
            f"{self.changes:,} of {counted(self.images, 'known image')} {have} another label: "
            f"{', '.join(named[:_MAX_NAMED])}{more}"
        )


def find_relabelled(earlier: Mapping[Key, str], now: Mapping[Key, str]) -> Relabelled:
    """Compare the labels of two versions.

    Args:
        earlier: image -> its label in the earlier version, such as by a digest; see `one_label_each`.
        now: the same in the new one.
    """
    both = [
        (label_named(earlier[image]), label_named(label)) for image, label in now.items() if image in earlier
    ]
    both = [(then, label) for then, label in both if then != SEVERAL]  # which of them it was cannot be known
    changed = Counter((then, label) for then, label in both if then != label)
    by_frequency = sorted(changed.items(), key=lambda item: (-item[1], item[0]))
    return Relabelled(Counter(then for then, _ in both), dict(by_frequency))


def one_label_each(labelled: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """Return image -> label; `SEVERAL` for images that have several."""
    labels: dict[Key, str] = {}
    for image, label in labelled:
        if labels.setdefault(image, label) != label:
            labels[image] = SEVERAL
    return labels
