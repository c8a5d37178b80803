"""What predictions are worth on a labelled split. Knows no network: it takes probabilities."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from serving.bundle import Estimate, Evaluation
from training.calibrate import expected_calibration_error
from training.scores import LabelScore, Scores

_Z_95 = 1.959963984540054  # standard normal, two-sided 95 %


def score(
    probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64], labels: Sequence[str]
) -> Scores:
    """Compare predictions with the truth.

    Args:
        probabilities: (N, K), N >= 1.
        truth: (N,) index into labels.
        labels: K names.
    """
    predicted = probabilities.argmax(axis=1)  # (N,)
    indices = list(range(len(labels)))
    columns = precision_recall_fscore_support(truth, predicted, labels=indices, zero_division=0)
    correct = int((predicted == truth).sum())
    return Scores(
        evaluation=Evaluation(
            images=len(truth),
            correct=correct,
            accuracy=wilson(correct, len(truth)),
            ece=expected_calibration_error(probabilities, truth),
        ),
        labels=tuple(
            LabelScore(label=label, precision=precision, recall=recall, f1=f1, images=images)
            for label, precision, recall, f1, images in zip(labels, *columns, strict=True)
        ),
        confusion=tuple(map(tuple, confusion_matrix(truth, predicted, labels=indices).tolist())),
    )


def wilson(correct: int, images: int) -> Estimate:
    """A fraction with its 95 % interval (Wilson 1927), which is sound near 0 and 1 too."""
    value = correct / images
    shrink = 1 + _Z_95**2 / images
    centre = (value + _Z_95**2 / (2 * images)) / shrink
    reach = _Z_95 / shrink * math.sqrt(value * (1 - value) / images + _Z_95**2 / (4 * images**2))
    # Rounding must not carry the bounds past the value, nor past what a fraction can be.
    return Estimate(
        value=value, low=max(0.0, min(value, centre - reach)), high=min(1.0, max(value, centre + reach))
    )
