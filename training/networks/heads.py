"""Fitted classifiers of scikit-learn as plain arithmetic: features in, logits out, the same labels.

A linear one becomes one matrix product, a kernel machine its kernel and one product, prototypes their
distances. Nothing is left for a server to know of scikit-learn.
"""

from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.svm import SVC
from torch import Tensor, nn

from training.networks.layer_features import LayerFeatures
from training.networks.network import Network

_Doubles = npt.NDArray[np.float64]


class FittedHeadNetwork(Network):
    """Frozen features and a fitted head: what few examples give."""

    def __init__(
        self, extractor: LayerFeatures, head: nn.Module, *, embedding_size: int, classes: int
    ) -> None:
        super().__init__(embedding_size, classes)
        self.extractor = extractor
        self.head = head
        self.pretrained = extractor.network.pretrained

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) uint8 -> logits (N, K) and features (N, D), float32."""
        embedding = self.extractor(images)  # (N, D)
        return self.head(embedding), embedding

    def parameter_count(self) -> int:
        """All numbers: the network's, and those that were fitted."""
        fitted = sum(buffer.numel() for buffer in self.head.buffers())
        return sum(parameter.numel() for parameter in self.parameters()) + fitted


class Standardise(nn.Module):
    """(features - shift) / scale, each feature by its own."""

    shift: Tensor  # (D,)
    scale: Tensor  # (D,)

    def __init__(self, shift: _Doubles, scale: _Doubles) -> None:
        super().__init__()
        self.register_buffer("shift", _tensor(shift))
        self.register_buffer("scale", _tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return (features - self.shift) / self.scale


class UnitLength(nn.Module):
    """Each row divided by its length; a row of zeros stays."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


class Affine(nn.Module):
    """One matrix product."""

    weight: Tensor  # (D, M)
    bias: Tensor  # (M,)

    def __init__(self, weight: _Doubles, bias: _Doubles) -> None:
        super().__init__()
        self.register_buffer("weight", _tensor(weight))
        self.register_buffer("bias", _tensor(bias))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, M)."""
        return torch.addmm(self.bias, features, self.weight)


class RadialKernel(nn.Module):
    """exp(-gamma * squared distance) to every support vector."""

    vectors: Tensor  # (S, D)
    squares: Tensor  # (S,)

    def __init__(self, vectors: _Doubles, gamma: float) -> None:
        super().__init__()
        self.register_buffer("vectors", _tensor(vectors))
        self.register_buffer("squares", _tensor(np.square(vectors).sum(axis=1)))
        self.gamma = gamma

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, S)."""
        squares = features.square().sum(dim=1, keepdim=True) + self.squares  # (N, S)
        distances = (squares - 2 * features @ self.vectors.T).clamp(min=0)
        return torch.exp(-self.gamma * distances)


class PolynomialKernel(nn.Module):
    """(gamma * product + coef0) ** degree with every support vector."""

    vectors: Tensor  # (S, D)

    def __init__(self, vectors: _Doubles, gamma: float, coef0: float, degree: int) -> None:
        super().__init__()
        self.register_buffer("vectors", _tensor(vectors))
        self.gamma, self.coef0, self.degree = gamma, coef0, degree

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, S)."""
        return (self.gamma * (features @ self.vectors.T) + self.coef0) ** self.degree


class BinaryLogits(nn.Module):
    """Two labels from one value: positive is the second."""

    def forward(self, decision: Tensor) -> Tensor:
        """(N, 1) -> (N, 2)."""
        return torch.cat([-decision, decision], dim=1) / 2


class OneVsOneVotes(nn.Module):
    """One value for each pair of labels -> votes, ties broken by confidence, as scikit-learn counts them."""

    to_labels: Tensor  # (pairs, K)

    def __init__(self, classes: int) -> None:
        super().__init__()
        pairs = list(combinations(range(classes), 2))
        to_labels = np.zeros((len(pairs), classes))
        for row, (first, second) in enumerate(pairs):
            to_labels[row, [first, second]] = 1, -1
        self.register_buffer("to_labels", _tensor(to_labels))

    def forward(self, decisions: Tensor) -> Tensor:
        """(N, pairs), positive for the first of the pair -> (N, K)."""
        for_first = (decisions >= 0).float()  # (N, pairs)
        won = for_first @ self.to_labels.clamp(min=0) + (1 - for_first) @ (-self.to_labels).clamp(min=0)
        confidence = decisions @ self.to_labels  # (N, K)
        return won + confidence / (3 * (confidence.abs() + 1))


class ScaledLogits(nn.Module):
    """Logits times a constant: the label stays, and a temperature near 1 suits every kind of head."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        """(N, K) -> (N, K)."""
        return logits * self.factor


def to_torch_module(fitted: Any) -> nn.Module:  # noqa: ANN401 - scikit-learn ships no types
    """The arithmetic of a fitted classifier.

    Args:
        fitted: SVC (linear, rbf or poly; with break_ties), LogisticRegression or NearestCentroid, of labels
            0..K-1.

    Returns: (N, D) float32 -> (N, K) float32, whose largest is scikit-learn's label.
    """
    if isinstance(fitted, LogisticRegression):
        rows = Affine(fitted.coef_.T, fitted.intercept_)
        return rows if len(fitted.classes_) > 2 else nn.Sequential(rows, BinaryLogits())  # noqa: PLR2004
    if isinstance(fitted, NearestCentroid):
        # Minus the squared distance, without the square of the features: the same for every label.
        centroids = fitted.centroids_  # (K, D)
        return Affine(2 * centroids.T, -np.square(centroids).sum(axis=1))
    if isinstance(fitted, SVC):
        return _support_vector_machine(fitted)
    raise TypeError(f"{type(fitted).__name__} has no explicit form. This is a bug.")


def _support_vector_machine(fitted: SVC) -> nn.Module:
    classes = len(fitted.classes_)
    vectors, weights = fitted.support_vectors_, _pair_weights(fitted)  # (S, D), (S, pairs)
    decide = BinaryLogits() if classes == 2 else OneVsOneVotes(classes)  # noqa: PLR2004
    if fitted.kernel == "linear":
        return nn.Sequential(Affine(vectors.T @ weights, fitted.intercept_), decide)
    kernel = (
        RadialKernel(vectors, fitted._gamma)  # noqa: SLF001 - what gamma="scale" came to
        if fitted.kernel == "rbf"
        else PolynomialKernel(vectors, fitted._gamma, fitted.coef0, fitted.degree)  # noqa: SLF001
    )
    return nn.Sequential(kernel, Affine(weights, fitted.intercept_), decide)


def _pair_weights(fitted: SVC) -> _Doubles:
    """(S, pairs): the weight of each support vector in the decision between two labels.

    libsvm keeps, for a vector of label i, its weights against all other labels in their order.
    """
    ends = np.cumsum(fitted.n_support_)
    owner = np.repeat(np.arange(len(ends)), fitted.n_support_)  # (S,) label of each vector
    pairs = list(combinations(range(len(ends)), 2))
    weights = np.zeros((len(owner), len(pairs)))
    for column, (first, second) in enumerate(pairs):
        weights[owner == first, column] = fitted.dual_coef_[second - 1, owner == first]
        weights[owner == second, column] = fitted.dual_coef_[first, owner == second]
    return weights


def _tensor(values: _Doubles) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
