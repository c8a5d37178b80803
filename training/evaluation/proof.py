"""Proves the exported file: scores it on the test split, and compares it with the torch network."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data import Dataset
from training.data.splits import Labels
from training.evaluation.evaluate import score
from training.evaluation.gates import Check, at_least, at_most
from training.evaluation.intervals import MIN_IMAGES_FOR_RECALL
from training.evaluation.onnx_session import open_session, run
from training.evaluation.parity import check_parity
from training.evaluation.scores import Scores
from training.export.export import Classifier
from training.recipe import GateRecipe

_MAX_NAMED_LABELS = 5


@dataclass(frozen=True, slots=True)
class Proof:
    """Scores and checks of an exported file."""

    scores: Scores
    checks: tuple[Check, ...]
    probabilities: npt.NDArray[np.float32]  # (N, K), on the test split
    embedding: npt.NDArray[np.float32]  # (N, D), on the test split


def prove(
    classifier: Classifier,
    model_file: Path,
    dataset: Dataset,
    gates: GateRecipe,
    *,
    fitted_labels: Labels | None = None,
    groups: Sequence[str] | None = None,
) -> Proof:
    """Run the file on the whole test split through ONNX Runtime.

    Args:
        classifier: the network that was exported, on the CPU, in evaluation mode.
        model_file: the exported file.
        dataset: provides the test split and the labels.
        gates: limits of the checks.
        fitted_labels: (N,) predictions of scikit-learn on the test split, if it fitted the head.
        groups: N group names of the test images, such as patients; None: images are independent.
    """
    session = open_session(model_file)
    probabilities, embedding = run(session, dataset.test.images)  # (N, K), (N, D)
    scores = score(probabilities, dataset.test.labels, dataset.labels, groups)
    checks = (
        *score_checks(scores, gates),
        *_scikit_learn_agreement(probabilities, fitted_labels),
        *check_parity(classifier, session, dataset.test.images, gates.max_parity_gap),
    )
    return Proof(scores, checks, probabilities, embedding)


def score_checks(scores: Scores, gates: GateRecipe) -> Iterator[Check]:
    """Compare the scores on the test split with the recipe's limits."""
    accuracy = scores.evaluation.accuracy.value
    yield at_least("test accuracy", accuracy, gates.min_accuracy, "gates.min_accuracy")
    yield from _floors(scores, gates)
    yield from _optional_gates(scores, gates)
    yield at_most(
        "test calibration error beyond chance", scores.ece_debiased or 0.0, gates.max_ece, "gates.max_ece"
    )


def _scikit_learn_agreement(probabilities: npt.NDArray[np.float32], fitted: Labels | None) -> Iterator[Check]:
    if fitted is not None:
        same = int((probabilities.argmax(axis=1) == fitted).sum())
        detail = f"{same:,} of {len(fitted):,}"
        yield Check(name="same labels as scikit-learn", passed=same == len(fitted), detail=detail)


def _floors(scores: Scores, gates: GateRecipe) -> Iterator[Check]:
    """Checks for every network: it must be better than always predicting the most frequent label."""
    counts = [sum(row) for row in scores.confusion]  # number of test images of each label
    total = sum(counts)
    majority = max(counts) / total
    floor = majority + gates.min_skill * (1 - majority)
    frequent = scores.labels[counts.index(max(counts))].label
    yield at_least(
        f"better than always {frequent!r} ({majority:.4g})",
        scores.evaluation.accuracy.value,
        floor,
        "gates.min_skill",
    )
    if not gates.allow_zero_recall:
        missed = [
            each.label for each in scores.labels if each.images >= MIN_IMAGES_FOR_RECALL and not each.recall
        ]
        named = ", ".join(map(repr, missed[:_MAX_NAMED_LABELS])) + (
            ", ..." if len(missed) > _MAX_NAMED_LABELS else ""
        )
        yield Check(
            name=f"every label with {MIN_IMAGES_FOR_RECALL} or more test images "
            "is predicted correctly at least once",
            passed=not missed,
            detail=f"never: {named} (gates.allow_zero_recall)" if missed else "all",
        )


def _optional_gates(scores: Scores, gates: GateRecipe) -> Iterator[Check]:
    """Return the gates that are off in most recipes."""
    if gates.min_balanced_accuracy:
        value = scores.balanced_accuracy.value if scores.balanced_accuracy else math.nan
        yield at_least(
            "balanced test accuracy", value, gates.min_balanced_accuracy, "gates.min_balanced_accuracy"
        )
    if gates.min_auc:
        value = scores.auc.value if scores.auc else math.nan
        yield at_least("test AUC", value, gates.min_auc, "gates.min_auc")
