"""How far the data have moved since the champion: the population stability index of shares. Pure."""

import math
from collections.abc import Mapping, Sequence

from serving.bundle import Reference

_PRIOR = 0.5  # added to each count, so that an empty bin has a logarithm (Jeffreys' prior)
_MIN_IMAGES = 5  # in each bin, on average: with fewer the index is noise


def stability_index(now: Sequence[float], before: Sequence[float]) -> float:
    """Return the population stability index less what chance alone gives, at least 0.

    The sum of (p - q) ln(p / q) over bins. Without drift its expectation is (B - 1)(1/N + 1/M) for N and M
    images in B bins (Yurdakul and Naranjo 2020, J. Risk Model Validation 14(4)).

    Args:
        now: images in each bin.
        before: images in each bin.
    """
    images, of_before, count = sum(now), sum(before), len(now)
    if min(images, of_before) < _MIN_IMAGES * count:
        return 0.0
    index = 0.0
    for here, there in zip(now, before, strict=True):
        p = (here + _PRIOR) / (images + _PRIOR * count)
        q = (there + _PRIOR) / (of_before + _PRIOR * count)
        index += (p - q) * math.log(p / q)
    return max(0.0, index - (count - 1) * (1 / images + 1 / of_before))


def largest_drift(
    trained_now: Mapping[str, int],
    trained_before: Mapping[str, int],
    answers_now: Reference,
    answers_before: Reference | None,
) -> tuple[float, str]:
    """Return the largest index, and what it is about; 0 and nothing if there is no drift.

    Args:
        trained_now: training images of each label.
        trained_before: those of the champion; empty: unknown.
        answers_now: what the champion answers for the new test images.
        answers_before: what it answered for its own test images; None: unknown.
    """
    found = [(0.0, "")]
    if trained_before:
        labels = sorted({*trained_now, *trained_before})
        now, before = ([counts.get(label, 0) for label in labels] for counts in (trained_now, trained_before))
        found.append(
            (stability_index(now, before), f"the labels, most of {_most_changed(labels, now, before)!r}")
        )
    if answers_before is not None:
        found += [
            (stability_index(answers_now.predicted, answers_before.predicted), "the champion's answers"),
            (stability_index(answers_now.confidence, answers_before.confidence), "the champion's confidence"),
        ]
    index, what = max(found)
    return index, what if index else ""


def _most_changed(labels: Sequence[str], now: Sequence[int], before: Sequence[int]) -> str:
    shares = zip(labels, now, before, strict=True)
    return max(shares, key=lambda each: abs(each[1] / (sum(now) or 1) - each[2] / (sum(before) or 1)))[0]
