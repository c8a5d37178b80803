"""Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from training.recipe.sections import AugmentationRecipe

_STREAM = 2  # separates these random numbers from those of the epoch's order and of augmentation


@dataclass(frozen=True, slots=True)
class Mixture:
    """How one batch is mixed."""

    kind: Literal["mixup", "cutmix"]
    partners: npt.NDArray[np.int64]  # (B,), a permutation
    share: float  # 0..1, weight of the image; its partner has the rest
    centre: tuple[float, float]  # of CutMix's rectangle, (down, right), 0..1


def draw_mixture(
    images: int, recipe: AugmentationRecipe, *, seed: int, epoch: int, step: int
) -> Mixture | None:
    """Draw how a step's batch is mixed, by seed, epoch and step alone; None if the recipe does not mix."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    random = np.random.default_rng([seed, epoch, step, _STREAM])
    cut = bool(recipe.cutmix) and (not recipe.mixup or random.random() < 0.5)  # noqa: PLR2004 - a fair coin
    alpha = recipe.cutmix if cut else recipe.mixup
    return Mixture(
        kind="cutmix" if cut else "mixup",
        partners=random.permutation(images),
        share=float(random.beta(alpha, alpha)),
        centre=(float(random.random()), float(random.random())),
    )


def mix(
    images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, *, mixture: Mixture, classes: int
) -> tuple[Tensor, Tensor]:
    """Mix images with their partners, and labels in the same proportion; see the papers above.

    Args:
        images: (B, H, W, C), 0..255.
        labels: (B,) int64.
        others: (B, H, W, C), the partner of each image.
        other_labels: (B,) int64.
        mixture: as `draw_mixture` returns it.
        classes: K.

    Returns: images (B, H, W, C) float32, and targets (B, K) float32 whose rows sum to 1.
    """
    share = mixture.share
    if mixture.kind == "cutmix":
        mixed, share = _cut(images.float(), others.float(), mixture)
    else:
        mixed = images.float() * share + others.float() * (1 - share)
    own = functional.one_hot(labels, classes).float()  # (B, K)
    partner = functional.one_hot(other_labels, classes).float()  # (B, K)
    return mixed, own * share + partner * (1 - share)


def _cut(images: Tensor, others: Tensor, mixture: Mixture) -> tuple[Tensor, float]:
    _, height, width, _ = images.shape
    side = float(np.sqrt(1 - mixture.share))  # of the rectangle, as a fraction of the image's
    top, bottom = _span(mixture.centre[0], side, height)
    left, right = _span(mixture.centre[1], side, width)
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    # The rectangle is clipped at the edges: the labels follow the area that was covered.
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    middle, half = centre * length, side * length / 2
    return max(0, round(middle - half)), min(length, round(middle + half))
