"""The random numbers of augmentation, as a pure function of seed, epoch and step.

A resumed run, or another process with its part of the batch, draws the same numbers, so no generator state is
saved. Each image has a row, each random decision a column.
"""

from enum import IntEnum, auto

import numpy as np
import torch
from torch import Tensor

_STREAM = 1  # separates these random numbers from those of the epoch's order


class Column(IntEnum):
    """Columns of the uniform random numbers, named after what they decide."""

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


# Later columns are drawn in a later block, so that with the same seed the older ones keep their numbers.
_COLUMNS_OF_BLOCKS = (Column.BLUR, len(Column) - Column.BLUR)


def draw_uniforms(images: int, *, seed: int, epoch: int, step: int) -> Tensor:
    """Draw the random numbers of a batch: (images, len(Column)) float32, 0 <= u < 1."""
    random = np.random.default_rng([seed, epoch, step, _STREAM])
    blocks = [random.random((images, columns), dtype=np.float32) for columns in _COLUMNS_OF_BLOCKS]
    return torch.from_numpy(np.concatenate(blocks, axis=1))
