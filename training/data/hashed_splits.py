"""Assigns images to splits by a hash of their key and the seed, so that adding images moves none.

Each class gets about its fraction, not exactly: taking an exact number would move images whenever it changes.
Independent of images.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.counted import counted
from training.data.labels import Indices, Labels
from training.errors import DataError

REST = "train"

_MOST_SEEDS = 2000  # tried for one with which every class has enough images
_MOST_HASHES = 500_000  # computed for it: two seconds


def assign(keys: Sequence[bytes], fractions: Mapping[str, float], seed: int) -> Indices:
    """Assign each key to a split.

    Args:
        keys: N; equal keys get the same split.
        fractions: split -> 0..1 of what the splits before it left.
        seed: of the hash.

    Returns: (N,) index into the splits of `fractions`; their number for the training split.
    """
    found: dict[bytes, int] = {}
    for key in keys:
        if key not in found:
            chosen = (i for i, (name, part) in enumerate(fractions.items()) if _unit(key, name, seed) < part)
            found[key] = next(chosen, len(fractions))
    return np.array([found[key] for key in keys], dtype=np.intp)


@dataclass(frozen=True, slots=True)
class HashedSplits:
    """How images are assigned to splits."""

    fractions: Mapping[str, float]  # split -> 0..1 of what the splits before it left
    seed: int
    min_validation: int = 1  # images of each class; the other splits need one

    def require_enough(self, keys: Sequence[bytes], labels: Labels, names: Sequence[str]) -> None:
        """Check that each class has enough images in each split.

        Args:
            keys: N; images with equal keys are in one split.
            labels: (N,) index into `names`; a class without any image is ignored.
            names: of the classes.

        Raises:
            DataError: a class has too few. Names the settings that change it, and a seed that is enough.
        """
        present = np.unique(labels)
        counts = self._count(keys, labels)[:, present]
        short = np.argwhere(counts < self._needed)
        if not len(short):
            return
        split, column = short[0].tolist()
        name, total = (*self.fractions, REST)[split], int(counts[:, column].sum())
        if total < int(self._needed.sum()):  # no fraction and no seed helps
            advice = ", or lower data.min_validation_images_per_class" if self.min_validation > 1 else ""
        else:
            advice = self._advice(keys, labels, name)
        raise DataError(
            f"the {name} split has {counted(int(counts[split, column]), 'image')} of "
            f"{names[present[column]]}, "
            f"{self._limit(name)}: add images (there are {total}, about {self._enough()} would do){advice}"
        )

    @property
    def _needed(self) -> Labels:
        """Images of each class that each split needs, (S, 1)."""
        splits = (*self.fractions, REST)
        return np.array([[self.min_validation if split == "validation" else 1] for split in splits])

    def _enough(self) -> int:
        """Images of a class with which every split nearly always gets those that it needs."""
        enough, left = 0, 1.0
        for part, needed in zip((*self.fractions.values(), 1.0), self._needed[:, 0].tolist(), strict=True):
            # Their number is about Poisson distributed; this mean is two deviations above what is needed.
            mean = (1 + math.sqrt(1 + needed)) ** 2
            enough = max(enough, math.ceil(mean / (part * left)))
            left *= 1 - part
        return enough

    def _count(self, keys: Sequence[bytes], labels: Labels) -> Labels:
        """Images by split and class, (S, K)."""
        counts = np.zeros((len(self.fractions) + 1, int(labels.max()) + 1), dtype=np.int64)
        np.add.at(counts, (assign(keys, self.fractions, self.seed), labels), 1)
        return counts

    def _limit(self, split: str) -> str:
        if split == "validation" and self.min_validation > 1:
            return f"data.min_validation_images_per_class is {self.min_validation}"
        return "at least 1 of each is needed"

    def _advice(self, keys: Sequence[bytes], labels: Labels, split: str) -> str:
        """Values of the settings that are enough for every class, if there are any."""
        present = np.unique(labels)

        def is_enough(other: HashedSplits) -> bool:
            return bool((other._count(keys, labels)[:, present] >= self._needed).all())

        advice = []
        if split in self.fractions:
            larger = [step / 20 for step in range(1, 11) if step / 20 > self.fractions[split]]
            others = [replace(self, fractions={**self.fractions, split: part}) for part in larger]
            raised = next((other.fractions[split] for other in others if is_enough(other)), None)
            raised_to = "" if raised is None else f" to {raised:g}"
            advice.append(f"raise data.{split}_fraction ({self.fractions[split]:g}){raised_to}")
        else:
            advice += [f"lower data.{name}_fraction ({part:g})" for name, part in self.fractions.items()]
        totals = np.bincount(labels)[present]
        seeds = (
            min(_MOST_SEEDS, _MOST_HASHES // len(set(keys))) if (totals >= self._needed.sum()).all() else 0
        )
        enough = next((seed for seed in range(seeds) if is_enough(replace(self, seed=seed))), None)
        if enough is not None:
            advice.append(f"set data.split_seed={enough}, which gives every class enough")
        lower = ""
        if split == "validation" and self.min_validation > 1:
            lower = ", lower data.min_validation_images_per_class"
        return f"{lower}, or, which moves images to other splits, {' or '.join(advice)}"


def _unit(key: bytes, split: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key, the split and the seed alone."""
    digest = hashlib.blake2b(key, digest_size=8, key=f"{seed} {split}".encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
