"""A few training images with augmented copies, for the report."""

import numpy as np
import numpy.typing as npt
import torch

from training.data.augmentation.mixing import draw_mixture, mix
from training.data.augmentation.pipeline import augment, flip_coins
from training.data.augmentation.uniforms import draw_uniforms
from training.data.splits import Split
from training.recipe import Recipe
from training.recipe.sections import AugmentationRecipe

_ROWS, _DRAWS = 6, 7


def augmented_examples(recipe: Recipe, split: Split) -> npt.NDArray[np.uint8] | None:
    """Augment one image of each of the first six classes seven times; None if the recipe augments nothing.

    Returns: (rows, 8, H, W, C) uint8; the first image of each row is the original.
    """
    if recipe.augmentation == AugmentationRecipe():
        return None
    chosen = [int(np.flatnonzero(split.labels == label)[0]) for label in np.unique(split.labels)[:_ROWS]]
    images = torch.from_numpy(split.images[chosen])  # (rows, H, W, C)
    columns = [images.float(), *(_draw(recipe, images, epoch) for epoch in range(_DRAWS))]
    stacked = torch.stack(columns, dim=1)  # (rows, 8, H, W, C)
    return stacked.round().clamp(0, 255).to(torch.uint8).numpy()


def _draw(recipe: Recipe, images: torch.Tensor, epoch: int) -> torch.Tensor:
    """Augment and mix the images as a batch of this epoch: (rows, H, W, C) float32."""
    seed, rows = recipe.training.seed, len(images)
    changed = augment(
        images,
        draw_uniforms(rows, seed=seed, epoch=epoch, step=0),
        recipe.augmentation,
        background=recipe.geometry.background,
        epoch=epoch,
        coins=flip_coins(rows, seed),
    )
    mixture = draw_mixture(rows, recipe.augmentation, seed=seed, epoch=epoch, step=0)
    if mixture is not None:
        labels = torch.zeros(rows, dtype=torch.int64)
        partners = torch.from_numpy(mixture.partners)
        changed, _ = mix(changed, labels, changed[partners], labels, mixture=mixture, classes=1)
    return changed.float()
