"""Finds images whose labels have changed since an earlier version. Does not know how they are recognized."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_MAX_NAMED = 4  # pairs of labels in a message

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
        """Return the share of changed images, of all or of the label that lost most of its images, 0..1.

        Args:
            min_images: labels that lost fewer images do not count.
        """
        lost: Counter[str] = Counter()
        for (then, _), images in self.changed.items():
            lost[then] += images
        shares = [images / self.known[then] for then, images in lost.items() if images >= min_images]
        if self.changes >= min_images:
            shares.append(self.changes / self.images)
        return max(shares, default=0.0)

    def __str__(self) -> str:
        """One line without the name of the version."""
        if not self.changes:
            return f"none of {self.images:,} known images has another label"
        named = [f"{then!r} is now {now!r} ({images:,})" for (then, now), images in self.changed.items()]
        more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        return (
            f"{self.changes:,} of {self.images:,} known images have another label: "
            f"{', '.join(named[:_MAX_NAMED])}{more}"
        )


def find_relabelled(earlier: Mapping[Key, str], now: Mapping[Key, str]) -> Relabelled:
    """Compare the labels of two versions.

    Args:
        earlier: image -> its label in the earlier version, such as by a digest.
        now: the same in the new one.
    """
    both = [(earlier[image], label) for image, label in now.items() if image in earlier]
    changed = Counter((then, label) for then, label in both if then != label)
    by_frequency = sorted(changed.items(), key=lambda item: (-item[1], item[0]))
    return Relabelled(Counter(then for then, _ in both), dict(by_frequency))


def one_label_each(labelled: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """Return image -> label, without images that have several."""
    labels: dict[Key, str] = {}
    unclear = set()
    for image, label in labelled:
        if labels.setdefault(image, label) != label:
            unclear.add(image)
    return {image: label for image, label in labels.items() if image not in unclear}
