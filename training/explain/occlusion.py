"""Occlusion maps (Zeiler and Fergus 2013, arXiv:1311.2901): how a probability falls when a patch is hidden.

Computed from the published ONNX file. Equals captum's Occlusion wherever its windows end at the border.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.bundle.images import Pixels
from training.data.storage.disk_images import Images

Floats = npt.NDArray[np.float32]
Predict = Callable[[Pixels], Floats]  # (N, H, W, C) uint8 -> probabilities (N, K)

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Patch:
    """What hides a part of an image."""

    side: int  # pixels
    stride: int  # pixels
    fill: tuple[int, ...]  # one value per channel

    def starts(self, length: int) -> list[int]:
        """Where the patch begins along an axis; the last one ends at the border."""
        last = max(0, length - self.side)
        return [*range(0, last, self.stride), last]


def default_patch(images: Images) -> Patch:
    """A quarter of the shorter side, moved by a sixteenth, in the images' mean colour.

    The mean colour adds the least: mid-grey would draw a shape on the black background of a digit.
    """
    shorter = min(images.shape[1:3])
    sample = np.asarray(images[:256], np.float32)  # (n, H, W, C)
    fill = tuple(int(value) for value in np.rint(sample.mean(axis=(0, 1, 2))))
    return Patch(max(1, shorter // 4), max(1, shorter // 16), fill)


def occlusion_maps(predict: Predict, image: Pixels, targets: Sequence[int], patch: Patch) -> Floats:
    """Measure how hiding each part of an image changes the probabilities of some labels.

    Args:
        predict: runs the network.
        image: (H, W, C) uint8.
        targets: indices of T labels.
        patch: hides a part of the image.

    Returns: (T, H, W) float32; at each pixel, the mean fall of the probability over all patches that hide it.
        Positive values are evidence for the label.
    """
    height, width, _ = image.shape
    places = [(top, left) for top in patch.starts(height) for left in patch.starts(width)]
    before = predict(image[None])[0, list(targets)]  # (T,)
    falls = np.zeros((len(targets), height, width))
    covered = np.zeros((height, width))
    for start in range(0, len(places), _BATCH):
        batch = places[start : start + _BATCH]
        hidden = np.repeat(image[None], len(batch), axis=0)  # (B, H, W, C)
        for copy, (top, left) in zip(hidden, batch, strict=True):
            copy[top : top + patch.side, left : left + patch.side] = patch.fill
        after = predict(hidden)[:, list(targets)]  # (B, T)
        for (top, left), change in zip(batch, before - after, strict=True):
            falls[:, top : top + patch.side, left : left + patch.side] += change[:, None, None]
            covered[top : top + patch.side, left : left + patch.side] += 1
    return (falls / covered).astype(np.float32)
