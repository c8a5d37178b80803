"""Statistics of two classifiers on the same images: those that one alone gets right tell them apart.

Pure: counts in, numbers out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

_Z_95 = 1.6448536269514722  # standard normal, one-sided 95 %

Correct = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pair:
    """Images that only one of two classifiers gets right; not whole numbers if images are not independent."""

    gained: float  # only the challenger is right
    lost: float  # only the champion is right
    images: float

    @property
    def difference(self) -> float:
        """Accuracy of the challenger minus that of the champion."""
        return (self.gained - self.lost) / self.images if self.images else 0.0


def pair_of(challenger: Correct, champion: Correct) -> Pair:
    """Count the images that one of the two alone gets right; both are (N,)."""
    return Pair(int((challenger & ~champion).sum()), int((champion & ~challenger).sum()), len(champion))


def effective(pair: Pair, challenger: Correct, champion: Correct, groups: Sequence[str] | None) -> Pair:
    """Divide the counts by the design effect of groups, such as patients (Rao and Scott 1992, Biometrics 48).

    Images of one group are alike, so they say less than as many independent ones. The effect is the variance
    of the difference over groups, relative to that over independent images; at least 1.

    Args:
        pair: of the two.
        challenger: (N,) which images it gets right.
        champion: (N,) which images it gets right.
        groups: N names; None: images are independent, and the pair is returned as it is.
    """
    if groups is None or not pair.images:
        return pair
    numbers = np.unique(np.array(groups), return_inverse=True)[1]  # (N,)
    residuals = challenger.astype(float) - champion - pair.difference  # (N,)
    of_groups = np.bincount(numbers, weights=residuals)
    count = len(of_groups)
    independent = float((residuals**2).sum())
    if not independent or count < 2:  # noqa: PLR2004 - one group has no variance
        return pair
    effect = max(1.0, float((of_groups**2).sum()) / independent * count / (count - 1))
    return Pair(pair.gained / effect, pair.lost / effect, pair.images / effect)


def p_worse(pair: Pair) -> float:
    """Return the one-sided p-value of McNemar's exact test: small if the challenger is worse.

    If both were equally good, the images that one alone gets right would be the challenger's with
    probability 1/2.
    """
    gained, lost = round(pair.gained), round(pair.lost)
    return float(bdtr(gained, gained + lost, 0.5)) if gained + lost else 1.0


def lowest_difference(pair: Pair) -> float:
    """Return the lower end of the one-sided 95 % interval of the difference of accuracies.

    The score interval of Tango (1998, Statistics in Medicine 17), which also has a width where the two agree
    on every image: with n images about 2.7 / n.
    """
    if not pair.images:
        return -1.0
    low, high = -1.0, pair.difference
    for _ in range(40):  # halvings of the bounds
        middle = (low + high) / 2
        low, high = (middle, high) if _score(pair, middle) > _Z_95 else (low, middle)
    return (low + high) / 2


def images_if_equal(margin: float) -> float:
    """Return how many images prove a loss of less than the margin if both answer all of them alike.

    Args:
        margin: share of the images, 0..1.

    Returns: not a whole number; infinite for a margin of 0.
    """
    return math.inf if not margin else _Z_95**2 * (1 - margin) / margin


def _score(pair: Pair, difference: float) -> float:
    """Tango's score statistic for a supposed difference below the observed one."""
    n, gained, lost = pair.images, pair.gained, pair.lost
    linear = (2 * n - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear**2 - 8 * n * constant))
    share = (root - linear) / (4 * n)  # most likely share of images that the champion alone gets right
    variance = n * (2 * share + difference * (1 - difference))
    excess = gained - lost - n * difference
    return math.inf if variance <= 0 else excess / math.sqrt(variance)
