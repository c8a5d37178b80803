"""Converts classifiers fitted by scikit-learn to torch modules that give the same labels.

A linear classifier becomes a matrix product, a kernel SVM a kernel and a product, prototypes become
distances. The exported file needs no scikit-learn.
"""

from collections.abc import Mapping
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
from training.recipe.sections import HeadRecipe

_Doubles = npt.NDArray[np.float64]


class FittedHeadNetwork(Network):
    """A network with frozen features and a head fitted by scikit-learn."""

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
        """Count all parameters, frozen and fitted."""
        fitted = sum(buffer.numel() for buffer in self.head.buffers())
        return sum(parameter.numel() for parameter in self.parameters()) + fitted


class Standardise(nn.Module):
    """Standardises each feature: (features - shift) / scale."""

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
    """Divides each row by its Euclidean norm; a row of zeros stays zero."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


class Affine(nn.Module):
    """A fixed linear layer: features @ weight + bias."""

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
    """The RBF kernel with every support vector: exp(-gamma * squared distance)."""

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

    def get_extra_state(self) -> Tensor:
        """Keep gamma with the weights."""
        return torch.tensor(self.gamma, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore gamma."""
        self.gamma = float(state)


class PolynomialKernel(nn.Module):
    """The polynomial kernel with every support vector: (gamma * dot product + coef0) ** degree."""

    vectors: Tensor  # (S, D)

    def __init__(self, vectors: _Doubles, gamma: float, coef0: float, degree: int) -> None:
        super().__init__()
        self.register_buffer("vectors", _tensor(vectors))
        self.gamma, self.coef0, self.degree = gamma, coef0, degree

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, S)."""
        return (self.gamma * (features @ self.vectors.T) + self.coef0) ** self.degree

    def get_extra_state(self) -> Tensor:
        """Keep gamma with the weights."""
        return torch.tensor(self.gamma, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore gamma."""
        self.gamma = float(state)


class BinaryLogits(nn.Module):
    """Two logits from one decision value; a positive value means the second label."""

    def forward(self, decision: Tensor) -> Tensor:
        """(N, 1) -> (N, 2)."""
        return torch.cat([-decision, decision], dim=1) / 2


class OneVsOneVotes(nn.Module):
    """One-vs-one decision values to votes per label, ties broken by confidence, as in scikit-learn."""

    to_labels: Tensor  # (pairs, K)

    def __init__(self, classes: int) -> None:
        super().__init__()
        pairs = list(combinations(range(classes), 2))
        to_labels = np.zeros((len(pairs), classes))
        for row, (first, second) in enumerate(pairs):
            to_labels[row, [first, second]] = 1, -1
        self.register_buffer("to_labels", _tensor(to_labels))

    def forward(self, decisions: Tensor) -> Tensor:
        """(N, pairs), positive for the first label of the pair -> (N, K)."""
        for_first = (decisions >= 0).float()  # (N, pairs)
        won = for_first @ self.to_labels.clamp(min=0) + (1 - for_first) @ (-self.to_labels).clamp(min=0)
        confidence = decisions @ self.to_labels  # (N, K)
        return won + confidence / (3 * (confidence.abs() + 1))


class ScaledLogits(nn.Module):
    """Scales logits by a constant, so that a temperature near 1 fits every kind of head."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        """(N, K) -> (N, K)."""
        return logits * self.factor

    def get_extra_state(self) -> Tensor:
        """Keep factor with the weights."""
        return torch.tensor(self.factor, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore factor."""
        self.factor = float(state)


def to_torch_module(fitted: Any) -> nn.Module:  # noqa: ANN401 - scikit-learn ships no types
    """Convert a fitted classifier to a module.

    Args:
        fitted: an SVC (linear, rbf or poly kernel, break_ties=True), LogisticRegression or NearestCentroid
            for labels 0..K-1.

    Returns: a module (N, D) float32 -> (N, K) float32, whose argmax is scikit-learn's label.

    Raises:
        TypeError: the type of the classifier is not supported.
    """
    if isinstance(fitted, LogisticRegression):
        rows = Affine(fitted.coef_.T, fitted.intercept_)
        return rows if len(fitted.classes_) > 2 else nn.Sequential(rows, BinaryLogits())  # noqa: PLR2004
    if isinstance(fitted, NearestCentroid):
        # The negative squared distance, without the square of the features, which is the same for all labels.
        centroids = fitted.centroids_  # (K, D)
        return Affine(2 * centroids.T, -np.square(centroids).sum(axis=1))
    if isinstance(fitted, SVC):
        return _support_vector_machine(fitted)
    raise TypeError(f"{type(fitted).__name__} cannot be converted. This is a bug.")


def empty_head(recipe: HeadRecipe, classes: int, state: Mapping[str, Tensor]) -> nn.Sequential:
    """A head of a recipe's kind, of the shapes in the state of a network, to load that state into.

    Args:
        recipe: the kind of head and its scaling.
        classes: number of labels.
        state: of the whole network; the head's names begin with "head.".
    """
    empty = np.zeros((1, 1))
    rows = Affine(empty, empty[0])
    binary = classes == 2  # noqa: PLR2004
    decide = BinaryLogits() if binary else OneVsOneVotes(classes)
    scaling: dict[str, list[nn.Module]] = {
        "standard": [Standardise(empty, empty)],
        "unit": [UnitLength()],
        "none": [],
    }
    kinds = {
        "logistic": nn.Sequential(rows, BinaryLogits()) if binary else rows,
        "prototype": rows,
        "linear-svm": nn.Sequential(rows, decide),
        "rbf-svm": nn.Sequential(RadialKernel(empty, 1.0), rows, decide),
        "poly-svm": nn.Sequential(PolynomialKernel(empty, 1.0, 1.0, recipe.degree), rows, decide),
    }
    head = nn.Sequential(*scaling[recipe.scaling], kinds[recipe.kind], ScaledLogits(1.0))
    for name, _ in list(head.named_buffers()):
        module, _, last = name.rpartition(".")
        if (kept := state.get(f"head.{name}")) is not None:
            head.get_submodule(module).register_buffer(last, torch.empty_like(kept))
    return head


def _support_vector_machine(fitted: SVC) -> nn.Module:
    classes = len(fitted.classes_)
    vectors, weights = fitted.support_vectors_, _pair_weights(fitted)  # (S, D), (S, pairs)
    decide = BinaryLogits() if classes == 2 else OneVsOneVotes(classes)  # noqa: PLR2004
    if fitted.kernel == "linear":
        return nn.Sequential(Affine(vectors.T @ weights, fitted.intercept_), decide)
    kernel = (
        RadialKernel(vectors, fitted._gamma)  # noqa: SLF001 - the value of gamma="scale"
        if fitted.kernel == "rbf"
        else PolynomialKernel(vectors, fitted._gamma, fitted.coef0, fitted.degree)  # noqa: SLF001
    )
    return nn.Sequential(kernel, Affine(weights, fitted.intercept_), decide)


def _pair_weights(fitted: SVC) -> _Doubles:
    """Return (S, pairs), the weight of each support vector in the decision between two labels.

    For a vector of label i, libsvm stores the weights against all other labels, in order.
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
