"""Predictions of networks that do not exist, for tests of the report."""

import numpy as np
from scipy.special import softmax

from training.report.predictions import Predictions, predictions_of


def random_predictions(
    images: int,
    labels: tuple[str, ...],
    *,
    groups: bool = False,
    seed: int = 0,
    skill: float = 2.0,
) -> Predictions:
    """Predictions of a network that is often right; with more skill more often."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(labels), images)
    logits = random.normal(size=(images, len(labels))) + skill * np.eye(len(labels))[truth]
    names = [f"images/{number}.png" for number in range(images)]
    return predictions_of(
        softmax(logits, axis=1).astype(np.float32),
        truth,
        labels,
        names,
        [f"patient {number // 2}" for number in range(images)] if groups else None,
    )
