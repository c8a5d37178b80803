"""The random numbers of a step, as a pure function of seed, epoch and step.

Whoever resumes, or takes a part of a batch on another process, draws the same ones: no generator's state has
to be kept. Each image has a row, each use a column.
"""

from enum import IntEnum, auto

import numpy as np
import torch
from torch import Tensor

_STREAM = 1  # keeps these numbers apart from those of the epoch's order


class Column(IntEnum):
    """What a column of uniform numbers decides."""

    SHIFT_Y = 0
    SHIFT_X = auto()
    AFFINE = auto()
    ROTATION = auto()
    ZOOM = auto()
    CROP_AREA = auto()
    CROP_ASPECT = auto()
    CROP_Y = auto()
    CROP_X = auto()
    FLIP = auto()
    VERTICAL_FLIP = auto()
    BRIGHTNESS = auto()
    CONTRAST = auto()
    SATURATION = auto()
    ERASE = auto()
    ERASED_AREA = auto()
    ERASED_ASPECT = auto()
    ERASED_Y = auto()
    ERASED_X = auto()
    TRIVIAL_OPERATION = auto()
    TRIVIAL_STRENGTH = auto()
    BLUR = auto()


# What was added later is drawn later: with the same seed, the columns before it keep their numbers.
_COLUMNS_OF_BLOCKS = (Column.BLUR, len(Column) - Column.BLUR)


def draw_uniforms(images: int, *, seed: int, epoch: int, step: int) -> Tensor:
    """(images, len(Column)) float32, each 0 <= u < 1."""
    random = np.random.default_rng([seed, epoch, step, _STREAM])
    blocks = [random.random((images, columns), dtype=np.float32) for columns in _COLUMNS_OF_BLOCKS]
    return torch.from_numpy(np.concatenate(blocks, axis=1))
