"""Fits a head on frozen features with scikit-learn, and measures accuracy by number of examples."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.svm import SVC
from torch import nn

from training.data.splits import Labels
from training.evaluation.intervals import mean_accuracy
from training.few_shot.curve import CurvePoint
from training.few_shot.features import Features
from training.networks.heads import ScaledLogits, Standardise, UnitLength, to_torch_module
from training.recipe.sections import HeadRecipe

_MOST_ITERATIONS = 10_000
_Doubles = npt.NDArray[np.float64]


class FittedHead:
    """A fitted scikit-learn classifier with its feature scaling, which can be converted to torch."""

    def __init__(self, recipe: HeadRecipe, features: Features, labels: Labels) -> None:
        self._recipe = recipe
        wide = features.astype(np.float64)
        self._shift = wide.mean(axis=0)  # (D,)
        spread = wide.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)  # (D,)
        # With one example per label, NearestCentroid warns of zero standard deviation within labels, which it
        # does not use with equal priors.
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*within_class_std_dev_", category=UserWarning)
            self._classifier = _classifier(recipe).fit(self._prepared(features), labels)

    def predict(self, features: Features) -> Labels:
        """Predict with scikit-learn: (N, D) float32 -> (N,) int64 labels."""
        predicted: Labels = self._classifier.predict(self._prepared(features)).astype(np.int64)
        return predicted

    def to_torch_module(self, features: Features) -> nn.Sequential:
        """Convert to torch: (N, D) float32 -> logits (N, K), with a median margin of 1 here."""
        logits = nn.Sequential(*self._before(), to_torch_module(self._classifier))
        with torch.no_grad():
            best = logits(torch.from_numpy(features)).topk(2, dim=1).values  # (N, 2)
        margin = float((best[:, 0] - best[:, 1]).median())
        return nn.Sequential(*logits, ScaledLogits(1 / margin if margin > 0 else 1.0))

    def _before(self) -> Iterator[nn.Module]:
        if self._recipe.scaling == "standard":
            yield Standardise(self._shift, self._scale)
        if self._recipe.scaling == "unit":
            yield UnitLength()

    def _prepared(self, features: Features) -> _Doubles:
        prepared: _Doubles = features.astype(np.float64)
        if self._recipe.scaling == "standard":
            prepared = (prepared - self._shift) / self._scale
        if self._recipe.scaling == "unit":
            prepared = prepared / np.maximum(np.linalg.norm(prepared, axis=1, keepdims=True), 1e-12)
        return prepared


def accuracy_curve(
    recipe: HeadRecipe,
    train: tuple[Features, Labels],
    test: tuple[Features, Labels],
    *,
    seed: int,
) -> tuple[CurvePoint, ...]:
    """Measure test accuracy with 1, 2, 5, ... training images per label, and with all training images.

    Args:
        recipe: the head, the numbers of images per label (`shots`) and the number of draws for each. Numbers
            above the size of the smallest class are skipped.
        train: features (N, D) float32 and labels (N,) int64 to draw from.
        test: features and labels to evaluate on.
        seed: seed of the draws.

    Returns: one point per number of images, ascending; the last is of all images.
    """
    features, labels = train
    fewest = int(np.bincount(labels).min())
    points = []
    for per_label in (number for number in recipe.shots if number <= fewest):
        random = np.random.default_rng([seed, per_label])
        correct = []
        for _ in range(recipe.draws):
            drawn = _draw(labels, per_label, random)
            correct.append(_correct(FittedHead(recipe, features[drawn], labels[drawn]), test))
        points.append(_point(per_label, correct))
    points.append(_point(None, [_correct(FittedHead(recipe, features, labels), test)]))
    return tuple(points)


def _classifier(recipe: HeadRecipe) -> Any:  # noqa: ANN401 - scikit-learn ships no types
    strength = recipe.regularisation
    if recipe.kind == "logistic":
        return LogisticRegression(C=strength, max_iter=_MOST_ITERATIONS)
    if recipe.kind == "prototype":
        return NearestCentroid()
    kernel = {"linear-svm": "linear", "rbf-svm": "rbf", "poly-svm": "poly"}[recipe.kind]
    return SVC(kernel=kernel, C=strength, degree=recipe.degree, coef0=1.0, break_ties=True)


def _draw(labels: Labels, per_label: int, random: np.random.Generator) -> npt.NDArray[np.intp]:
    members: list[npt.NDArray[np.intp]] = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([random.choice(those, per_label, replace=False) for those in members])


def _correct(fitted: FittedHead, test: tuple[Features, Labels]) -> npt.NDArray[np.bool_]:
    """(N,) whether each test image is classified correctly."""
    return np.asarray(fitted.predict(test[0]) == test[1])


def _point(per_label: int | None, correct: Sequence[npt.NDArray[np.bool_]]) -> CurvePoint:
    matrix = np.stack(correct)  # (draws, N)
    estimate = mean_accuracy(matrix)
    accuracies = matrix.mean(axis=1)
    return CurvePoint(
        per_label=per_label,
        draws=len(matrix),
        mean=estimate.value,
        low=estimate.low,
        high=estimate.high,
        worst=float(accuracies.min()),
        best=float(accuracies.max()),
        test_images=matrix.shape[1],
    )
