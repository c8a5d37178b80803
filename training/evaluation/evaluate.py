"""Scores probabilities against labels: accuracy, recall, AUC, top-5, confusion. Knows no network."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from serving.bundle import Estimate, Evaluation
from training.evaluation.calibrate import expected_calibration_error
from training.evaluation.scores import LabelScore, Scores

_Z_95 = 1.959963984540054  # standard normal, two-sided 95 %
_MAX_LISTED_LABELS = 100  # with more, only labels that occur are listed
_MIN_LABELS_FOR_TOP_5 = 10  # with fewer, five guesses say little
_MIN_IMAGES_FOR_RECALL = 10  # of each label: a bootstrap of fewer is too narrow
_RESAMPLES = 2000
_RESAMPLE_CHUNK = 100

_Weights = npt.NDArray[np.float64]


def score(
    probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64], labels: Sequence[str]
) -> Scores:
    """Score predictions.

    Args:
        probabilities: (N, K), N >= 1.
        truth: (N,) index into labels.
        labels: K names.

    Returns: with more than 100 labels, per-label scores and the confusion matrix cover only those that occur
        or are predicted; AUC exists for two labels, top-5 accuracy from ten labels on.
    """
    predicted = probabilities.argmax(axis=1)  # (N,)
    indices = _listed_labels(truth, predicted, len(labels))
    columns = precision_recall_fscore_support(truth, predicted, labels=indices, zero_division=0)
    correct = int((predicted == truth).sum())
    return Scores(
        evaluation=Evaluation(
            images=len(truth),
            correct=correct,
            accuracy=wilson_interval(correct, len(truth)),
            ece=expected_calibration_error(probabilities, truth),
        ),
        labels=tuple(
            LabelScore(label=label, precision=precision, recall=recall, f1=f1, images=images)
            for label, precision, recall, f1, images in zip(
                (labels[index] for index in indices), *columns, strict=True
            )
        ),
        confusion=tuple(map(tuple, confusion_matrix(truth, predicted, labels=indices).tolist())),
        balanced_accuracy=balanced_accuracy(truth, predicted),
        auc=roc_auc(probabilities[:, 1], truth == 1) if len(labels) == 2 else None,  # noqa: PLR2004
        top5=_top5(probabilities, truth) if len(labels) >= _MIN_LABELS_FOR_TOP_5 else None,
    )


def balanced_accuracy(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> Estimate | None:
    """Mean recall of the labels that occur, with its 95 % bootstrap interval.

    The bootstrap resamples images within each label, so the number of correct ones is binomial.

    Args:
        truth: (N,) labels.
        predicted: (N,) labels.

    Returns: None if a label has fewer than ten images.
    """
    members = [predicted[truth == label] == label for label in np.unique(truth)]
    recalls = np.array([right.mean() for right in members])  # (K,)
    counts = np.array([len(right) for right in members])  # (K,)
    if counts.min() < _MIN_IMAGES_FOR_RECALL:
        return None
    random = np.random.default_rng(0)
    drawn = random.binomial(counts, recalls, (_RESAMPLES, len(members))) / counts  # (R, K)
    return _percentile_interval(float(recalls.mean()), drawn.mean(axis=1))


def roc_auc(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> Estimate | None:
    """Area under the ROC curve with its 95 % bootstrap interval.

    The bootstrap resamples images within each label. A resample is a weight per image, so the scores are
    sorted only once.

    Args:
        scores: (N,) higher for positives.
        positive: (N,)

    Returns: None if only one label occurs.
    """
    if positive.all() or not positive.any():
        return None
    order = np.argsort(scores, kind="stable")
    positive = positive[order]  # (N,)
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of runs of equal scores
    random = np.random.default_rng(0)
    areas = [
        _weighted_auc(_bootstrap_weights(positive, _RESAMPLE_CHUNK, random), positive, starts)
        for _ in range(_RESAMPLES // _RESAMPLE_CHUNK)
    ]
    value = _weighted_auc(np.ones((1, len(positive))), positive, starts)
    return _percentile_interval(float(value[0]), np.concatenate(areas))


def _bootstrap_weights(positive: npt.NDArray[np.bool_], draws: int, random: np.random.Generator) -> _Weights:
    """How often each image is drawn: (draws, N)."""
    weights = np.zeros((draws, len(positive)))
    for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        weights[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return weights


def _weighted_auc(
    weights: _Weights, positive: npt.NDArray[np.bool_], starts: npt.NDArray[np.intp]
) -> _Weights:
    """Area under the ROC curve for each row of weights, (draws,): ties count half."""
    positives = np.add.reduceat(weights * positive, starts, axis=1)  # (draws, distinct scores)
    negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    areas: _Weights = (positives * below).sum(axis=1) / (positives.sum(axis=1) * negatives.sum(axis=1))
    return areas


def _percentile_interval(value: float, drawn: _Weights) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _listed_labels(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], labels: int) -> list[int]:
    if labels <= _MAX_LISTED_LABELS:
        return list(range(labels))
    return sorted({*truth.tolist(), *predicted.tolist()})


def _top5(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64]) -> Estimate:
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]  # (N, 5)
    return wilson_interval(int((best == truth[:, np.newaxis]).any(axis=1).sum()), len(truth))


def wilson_interval(correct: int, images: int) -> Estimate:
    """`correct / images` with its 95 % interval (Wilson 1927), which is valid near 0 and 1 too."""
    value = correct / images
    denominator = 1 + _Z_95**2 / images
    centre = (value + _Z_95**2 / (2 * images)) / denominator
    half_width = _Z_95 / denominator * math.sqrt(value * (1 - value) / images + _Z_95**2 / (4 * images**2))
    # Rounding must not carry the bounds past the value, nor past what a fraction can be.
    return Estimate(
        value=value,
        low=max(0.0, min(value, centre - half_width)),
        high=min(1.0, max(value, centre + half_width)),
    )
