"""What drifted most since the champion."""

from serving.bundle import Reference
from training.champion.drift import largest_drift

SAME = Reference(predicted=(500, 500), confidence=(*[0] * 12, 1000))


def test_too_few_images_say_nothing() -> None:
    """Fewer than five in each bin, on average."""
    assert largest_drift({"a": 9, "b": 0}, {"a": 0, "b": 1000}, SAME, SAME) == (0.0, "")


def test_the_label_that_changed_most_is_named() -> None:
    """One label of the training images has vanished."""
    index, what = largest_drift({"a": 500, "b": 500, "c": 5}, {"a": 500, "b": 500, "c": 500}, SAME, SAME)
    assert index > 0.5
    assert what == "the labels, most of 'c'"


def test_what_is_unknown_does_not_drift() -> None:
    """Old champions record neither counts nor answers."""
    assert largest_drift({"a": 5, "b": 5}, {}, SAME, None) == (0.0, "")
    assert largest_drift({"a": 50, "b": 50}, {"a": 50, "b": 50}, SAME, SAME) == (0.0, "")
