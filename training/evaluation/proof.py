"""The exported file is judged: scored on the test split, and compared with the network it came from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels
from training.data import Dataset
from training.data.splits import Labels
from training.evaluation.evaluate import score
from training.evaluation.gates import Check, at_least, at_most
from training.evaluation.onnx_session import open_session, run
from training.evaluation.parity import check_parity
from training.evaluation.scores import Scores
from training.export.export import Classifier
from training.recipe import GateRecipe

_MAX_MISCLASSIFIED = 24


@dataclass(frozen=True, slots=True)
class Misclassification:
    """One test image whose predicted label is wrong."""

    name: str
    truth: str
    predicted: str
    probability: float
    pixels: Pixels  # (H, W, C) uint8


@dataclass(frozen=True, slots=True)
class Proof:
    """What the exported file is worth."""

    scores: Scores
    checks: tuple[Check, ...]
    misclassified: tuple[Misclassification, ...]  # the most confident first


def prove(
    classifier: Classifier,
    model_file: Path,
    dataset: Dataset,
    gates: GateRecipe,
    *,
    fitted_labels: Labels | None = None,
) -> Proof:
    """Run the file on the whole test split through ONNX Runtime.

    Args:
        classifier: what the file was made from; on the CPU, in evaluation mode.
        model_file: the exported file.
        dataset: of which the test split and the labels are used.
        gates: limits of the checks.
        fitted_labels: (N,) what scikit-learn says of the test split, where it fitted the head.
    """
    session = open_session(model_file)
    probabilities, _ = run(session, dataset.test.images)  # (N, K)
    scores = score(probabilities, dataset.test.labels, dataset.labels)
    evaluation = scores.evaluation
    checks = (
        at_least("accuracy on the test split", evaluation.accuracy.value, gates.min_accuracy),
        *_optional_gates(scores, gates),
        *_scikit_learn_agreement(probabilities, fitted_labels),
        at_most("calibration error on the test split", evaluation.ece, gates.max_ece),
        *check_parity(classifier, session, dataset.test.images, gates.max_parity_gap),
    )
    return Proof(scores, checks, _misclassified(dataset, probabilities))


def _scikit_learn_agreement(probabilities: npt.NDArray[np.float32], fitted: Labels | None) -> Iterator[Check]:
    if fitted is not None:
        same = int((probabilities.argmax(axis=1) == fitted).sum())
        detail = f"{same:,} of {len(fitted):,}"
        yield Check(name="same labels as scikit-learn", passed=same == len(fitted), detail=detail)


def _optional_gates(scores: Scores, gates: GateRecipe) -> Iterator[Check]:
    """Only those that were asked for: most recipes judge by accuracy alone."""
    if gates.min_balanced_accuracy:
        value = scores.balanced_accuracy.value if scores.balanced_accuracy else math.nan
        yield at_least("balanced accuracy on the test split", value, gates.min_balanced_accuracy)
    if gates.min_auc:
        value = scores.auc.value if scores.auc else math.nan
        yield at_least("area under the ROC curve on the test split", value, gates.min_auc)


def _misclassified(dataset: Dataset, probabilities: npt.NDArray[np.float32]) -> tuple[Misclassification, ...]:
    test, labels = dataset.test, dataset.labels
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)  # (N,)
    wrong = np.flatnonzero(predicted != test.labels)
    most_confident = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISCLASSIFIED]
    return tuple(
        Misclassification(
            name=test.names[index],
            truth=labels[test.labels[index]],
            predicted=labels[predicted[index]],
            probability=float(confidence[index]),
            pixels=test.images[index],
        )
        for index in most_confident
    )
