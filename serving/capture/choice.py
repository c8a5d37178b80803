"""Chooses which images of a request are captured. Pure: probabilities in, choices out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class CapturePolicy:
    """Which images are captured: a random share, of all or of those that the network is unsure of."""

    rate: float = 1.0  # share of the images, 0..1
    below_confidence: float = math.inf  # only with a smaller probability of the predicted label
    below_margin: float = math.inf  # only with a smaller distance from the second label


@dataclass(frozen=True, slots=True)
class Answer:
    """What a network answered for one image: the two most probable labels."""

    index: int
    confidence: float
    second: int
    margin: float  # the difference of the two probabilities


def choose(
    probabilities: npt.NDArray[np.float32], policy: CapturePolicy, random: Callable[[], float]
) -> list[tuple[int, Answer]]:
    """Return the rows to capture, with their answers.

    Args:
        probabilities: (N, K).
        policy: what to choose.
        random: returns a number of [0, 1).
    """
    rows = [row for row in range(len(probabilities)) if random() < policy.rate]
    answers = ((row, _answer(probabilities[row])) for row in rows)
    return [
        (row, answer)
        for row, answer in answers
        if answer.confidence < policy.below_confidence and answer.margin < policy.below_margin
    ]


def _answer(row: npt.NDArray[np.float32]) -> Answer:
    first, second = np.argsort(-row, kind="stable")[:2].tolist()  # ties: the first, as `rank` orders them
    confidence = float(row[first])
    return Answer(first, confidence, second, confidence - float(row[second]))
