"""The deletion test (Petsiuk et al. 2018, arXiv:1806.07421): is what a map calls important, important?

Squares of an image are hidden one after another, the most important first. The faster the probability of the
label falls, the better the map; random order is the baseline.
"""

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels
from training.explain.occlusion import Floats, Patch, Predict

_SQUARES = 8  # along each side
_STEPS = 16  # of the curve


def deletion_score(predict: Predict, image: Pixels, target: int, importance: Floats, patch: Patch) -> float:
    """Mean probability of a label while an image is hidden square by square: 0 is best, 1 is worst.

    Args:
        predict: runs the network.
        image: (H, W, C) uint8.
        target: index of the label.
        importance: (H, W), or random numbers for the baseline.
        patch: its fill hides the squares.
    """
    squares = _squares(image.shape[0], image.shape[1])  # (H, W)
    sums = np.bincount(squares.ravel(), importance.ravel().astype(np.float64))
    order = np.argsort(-sums / np.bincount(squares.ravel()), kind="stable")
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    hidden_first = rank[squares]  # (H, W): when each pixel is hidden
    steps = np.linspace(0, len(order), _STEPS + 1)[:-1]
    copies = np.where(
        (hidden_first[None] < steps[:, None, None])[..., None], np.array(patch.fill, np.uint8), image[None]
    )  # (S, H, W, C)
    return float(predict(copies)[:, target].mean())


def _squares(height: int, width: int) -> npt.NDArray[np.intp]:
    """(H, W): the number of the square that each pixel is in."""
    down = np.arange(height) * min(_SQUARES, height) // height
    across = np.arange(width) * min(_SQUARES, width) // width
    return (down[:, None] * _SQUARES + across).astype(np.intp)
