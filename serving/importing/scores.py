"""The output of a foreign model: which tensor has the classes, and how its values become probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.bundle.measures import softmax
from serving.counted import counted
from serving.errors import UnsupportedModel, UsageError

Kind = Literal["logits", "probabilities", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Scores:
    """The output tensor with the classes."""

    name: str
    kind: Kind
    outputs: int  # 1: the score of the second of two classes
    is_rounded: bool = False  # probabilities whose sums are not exactly 1, so that they are divided by them

    @property
    def classes(self) -> int:
        """Number of labels."""
        return max(2, self.outputs)

    def probabilities(self, raw: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Return probabilities by numpy, (N, K), from what the file returned for N images."""
        wide = raw.astype(np.float64).reshape(len(raw), self.outputs)  # (N, outputs), a copy
        if self.outputs == 1:
            second = 1 / (1 + np.exp(-wide)) if self.kind == "logits" else wide  # (N, 1)
            return np.concatenate([1 - second, second], axis=1)
        if self.is_rounded:
            wide /= wide.sum(axis=1, keepdims=True)
        return softmax(wide).astype(np.float64) if self.kind == "logits" else wide


def choose_output(
    found: Mapping[str, object], *, images: int, classes: int | None, wanted: str | None
) -> str:
    """Choose the output that holds one score for each class.

    Args:
        found: name -> what the file returned for some images.
        images: how many these were.
        classes: number of labels, if it is known.
        wanted: --output-name.

    Raises:
        UsageError: `wanted` does not exist, or several outputs could be meant.
        UnsupportedModel: no output has the shape of a classifier's.
    """
    if wanted is not None:
        if wanted not in found:
            raise UsageError(
                f"--output-name {wanted}: the file's outputs are {', '.join(map(repr, found))}: name one of "
                "these, or leave --output-name out"
            )
        found = {wanted: found[wanted]}
    fitting = {name: _columns(value, images) for name, value in found.items()}
    fitting = {name: columns for name, columns in fitting.items() if columns}
    if not fitting:
        described = ", ".join(f"{name!r} {_describe(value, images)}" for name, value in found.items())
        raise UnsupportedModel(
            f"no output is a classifier's, which has floats of shape (batch, classes): {described}; "
            f"{_remedy(list(found.values()), images)}"
        )
    if len(fitting) > 1:
        fitting = {name: columns for name, columns in fitting.items() if columns == classes} or fitting
    if len(fitting) > 1:
        shown = ", ".join(f"{name} ({counted(columns, 'value')})" for name, columns in fitting.items())
        raise UsageError(f"several outputs can hold the classes: {shown}; name one of them by --output-name")
    return next(iter(fitting))


def _columns(value: object, images: int) -> int:
    """Return the number of scores of an image; 0 if this is not a classifier's output."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim < 2:  # noqa: PLR2004 - (N, K)
        return 0
    is_flat = sum(side != 1 for side in value.shape[1:]) <= 1  # also (N, K, 1, 1)
    return int(value[0].size) if is_flat and len(value) == images else 0


def _describe(value: object, images: int) -> str:
    if isinstance(value, list):
        return "is a sequence"
    if not isinstance(value, np.ndarray):
        return f"is a {type(value).__name__}"
    shape = ["batch", *value.shape[1:]] if _has_batch(value, images) else value.shape
    return f"has shape ({', '.join(map(str, shape))}) of {value.dtype}"


def _has_batch(value: npt.NDArray[np.generic], images: int) -> bool:
    return value.ndim > 0 and len(value) == images


def _remedy(values: Sequence[object], images: int) -> str:
    """Return what to do about outputs that are not a classifier's, by what they look like."""
    if any(isinstance(value, list) for value in values):
        return "scikit-learn's converter writes sequences: export the model with options={'zipmap': False}"
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    axes = max((value.ndim for value in arrays), default=0)
    if axes > 3:  # noqa: PLR2004 - a score for each pixel, or features
        return (
            f"{axes} axes are maps of a segmentation or of a network without its head: import a network that "
            "gives each image one label"
        )
    if axes == 3:  # noqa: PLR2004 - boxes with their scores
        return (
            "3 axes are boxes of a detector, or a sequence: import a network that gives each image one label"
        )
    if any(value.dtype.kind in "iu" for value in arrays):
        return "whole numbers are labels without scores: export the model with its logits, before the ArgMax"
    if not any(_has_batch(value, images) for value in arrays):
        return "the first axis must be the batch: export the model so that each image has a row of scores"
    return "export the model with its logits or probabilities as output"
