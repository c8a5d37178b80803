"""How far the data have moved since the champion, and what moved most. Pure."""

from collections.abc import Mapping, Sequence

from serving.bundle import Reference
from serving.bundle.reference import stability_index

_MIN_IMAGES = 5  # in each bin, on average: with fewer the index is noise


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
        found.append((_index(now, before), f"the labels, most of {_most_changed(labels, now, before)!r}"))
    if answers_before is not None:
        found += [
            (_index(answers_now.predicted, answers_before.predicted), "the champion's answers"),
            (_index(answers_now.confidence, answers_before.confidence), "the champion's confidence"),
        ]
    index, what = max(found)
    return index, what if index else ""


def _index(now: Sequence[int], before: Sequence[int]) -> float:
    return stability_index(now, before) if min(sum(now), sum(before)) >= _MIN_IMAGES * len(now) else 0.0


def _most_changed(labels: Sequence[str], now: Sequence[int], before: Sequence[int]) -> str:
    shares = zip(labels, now, before, strict=True)
    return max(shares, key=lambda each: abs(each[1] / (sum(now) or 1) - each[2] / (sum(before) or 1)))[0]
