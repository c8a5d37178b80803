"""The population stability index, and what drifted most."""

import math

import numpy as np
import pytest

from serving.bundle import Reference
from training.champion.drift import largest_drift, stability_index

SAME = Reference(predicted=(500, 500), confidence=(*[0] * 12, 1000))


def test_the_index_is_that_of_its_definition() -> None:
    """Of shares, with half an image added to each count, less the expectation without drift."""
    now, before = (300, 700), (500, 500)
    shares = [((here + 0.5) / 1001, (there + 0.5) / 1001) for here, there in zip(now, before, strict=True)]
    expected = sum((p - q) * math.log(p / q) for p, q in shares) - (1 / 1000 + 1 / 1000)
    assert stability_index(now, before) == pytest.approx(expected)


def test_chance_alone_gives_about_zero() -> None:
    """On average over draws from one distribution."""
    random = np.random.default_rng(0)
    draws = random.multinomial(500, [0.1] * 10, (200, 2))
    assert np.mean([stability_index(now, before) for now, before in draws.tolist()]) < 0.012


def test_too_few_images_say_nothing() -> None:
    """Fewer than five in each bin, on average."""
    assert stability_index((9, 0), (0, 1000)) == 0


def test_the_label_that_changed_most_is_named() -> None:
    """One label of the training images has vanished."""
    index, what = largest_drift({"a": 500, "b": 500, "c": 5}, {"a": 500, "b": 500, "c": 500}, SAME, SAME)
    assert index > 0.5
    assert what == "the labels, most of 'c'"


def test_what_is_unknown_does_not_drift() -> None:
    """Old champions record neither counts nor answers."""
    assert largest_drift({"a": 5, "b": 5}, {}, SAME, None) == (0.0, "")
    assert largest_drift({"a": 50, "b": 50}, {"a": 50, "b": 50}, SAME, SAME) == (0.0, "")
