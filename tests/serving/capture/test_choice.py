"""Which images are captured: a share, and only uncertain ones if asked."""

import numpy as np
import pytest

from serving.capture.choice import Answer, CapturePolicy, choose

PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.125, 0.0, 0.875], [0.5, 0.5, 0.0]], np.float32)  # (N, K)


def _rows(policy: CapturePolicy) -> list[int]:
    return [row for row, _ in choose(PROBABILITIES, policy, lambda: 0.0)]


def test_an_answer_has_the_two_best_labels() -> None:
    """Ties go to the first label, as in the answer that the client gets."""
    assert choose(PROBABILITIES, CapturePolicy(), lambda: 0.0) == [
        (0, Answer(0, 0.5, 1, 0.25)),
        (1, Answer(2, 0.875, 0, 0.75)),
        (2, Answer(0, 0.5, 1, 0.0)),
    ]


@pytest.mark.parametrize(
    ("policy", "rows"),
    [
        (CapturePolicy(below_confidence=0.875), [0, 2]),
        (CapturePolicy(below_confidence=0.9), [0, 1, 2]),
        (CapturePolicy(below_margin=0.25), [2]),
        (CapturePolicy(below_confidence=0.6, below_margin=0.3), [0, 2]),
    ],
)
def test_only_uncertain_images_are_chosen_below_a_limit(policy: CapturePolicy, rows: list[int]) -> None:
    """The limit itself is not below."""
    assert _rows(policy) == rows


def test_a_share_of_the_images_is_chosen() -> None:
    """Of each image on its own, not of each request."""
    generator = np.random.default_rng(0)
    many = PROBABILITIES[[0] * 1000]
    chosen = len(choose(many, CapturePolicy(rate=0.3), generator.random))
    assert 250 < chosen < 350
    assert choose(many, CapturePolicy(rate=0.3), lambda: 0.3) == []
