"""Scores probabilities against labels: accuracy, recall, AUC, top-5, confusion. Independent of networks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from serving.bundle import Estimate, Evaluation
from serving.bundle.measures import expected_calibration_error, wilson_interval
from training.evaluation.calibrate import debiased_calibration_error
from training.evaluation.intervals import balanced_accuracy, roc_auc
from training.evaluation.scores import LabelScore, Scores

_MAX_LISTED_LABELS = 100  # above this, only labels that occur are listed
_MIN_LABELS_FOR_TOP_5 = 10  # below this, top-5 accuracy says little


def score(
    probabilities: npt.NDArray[np.floating],
    truth: npt.NDArray[np.int64],
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
) -> Scores:
    """Score predictions.

    Args:
        probabilities: (N, K), N >= 1.
        truth: (N,) index into labels.
        labels: K label names.
        groups: N group names, such as patients, if several images show the same one.

    Returns: the scores. With more than 100 labels, per-label scores and the confusion matrix cover only those
        that occur or are predicted; AUC requires two labels, top-5 accuracy at least ten.
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
        ece_debiased=debiased_calibration_error(probabilities, truth),
        negative_log_likelihood=_negative_log_likelihood(probabilities, truth),
        brier=_brier(probabilities, truth),
        auc=roc_auc(probabilities[:, 1], truth == 1, groups) if len(labels) == 2 else None,  # noqa: PLR2004
        top5=_top5(probabilities, truth) if len(labels) >= _MIN_LABELS_FOR_TOP_5 else None,
    )


def _listed_labels(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], labels: int) -> list[int]:
    if labels <= _MAX_LISTED_LABELS:
        return list(range(labels))
    return sorted({*truth.tolist(), *predicted.tolist()})


def _top5(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64]) -> Estimate:
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]  # (N, 5)
    return wilson_interval(int((best == truth[:, np.newaxis]).any(axis=1).sum()), len(truth))


def _negative_log_likelihood(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64]) -> float:
    of_truth = probabilities[np.arange(len(truth)), truth].astype(np.float64)  # (N,)
    return float(-np.log(np.maximum(of_truth, np.finfo(np.float32).tiny)).mean())


def _brier(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64]) -> float:
    """Brier (1950): the squared distance to the true label's unit vector, summed over labels, 0..2."""
    wide = probabilities.astype(np.float64)
    of_truth = wide[np.arange(len(truth)), truth]  # (N,)
    return float(((wide**2).sum(axis=1) - 2 * of_truth + 1).mean())
