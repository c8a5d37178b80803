"""The augmentation pipeline: applies a recipe's transforms to a batch, in a fixed order."""

import torch
from torch import Tensor

from training.data.augmentation import colour_transforms, geometric_transforms
from training.data.augmentation.trivial_augment import trivial_augment
from training.data.augmentation.uniforms import Column
from training.recipe.sections import AugmentationRecipe


def augment(
    images: Tensor,
    uniforms: Tensor,
    recipe: AugmentationRecipe,
    *,
    background: int,
    epoch: int,
    coins: Tensor,
) -> Tensor:
    """Augment a batch; each image has its own row of random numbers.

    Args:
        images: (B, H, W, C) uint8.
        uniforms: (B, len(Column)) float32, 0..1, on the images' device.
        recipe: the transforms and their strengths; with all at zero the images are returned unchanged.
        background: 0..255, the geometry's fill.
        epoch: from 0, for alternating flips.
        coins: (B,) 0 or 1, constant per image over all epochs, for alternating flips.

    Returns: (B, H, W, C), 0..255: uint8, or float32 if pixel values were interpolated.
    """
    if recipe.max_shift_px:
        images = geometric_transforms.shift(images, uniforms, recipe, background)
    if recipe.flip != "none":
        alternating = recipe.flip == "alternating"
        mirrored = (coins + epoch) % 2 == 1 if alternating else uniforms[:, Column.FLIP] < 0.5  # noqa: PLR2004
        images = geometric_transforms.mirror(images, mirrored, axis=2)
    if recipe.vertical_flip:
        images = geometric_transforms.mirror(images, uniforms[:, Column.VERTICAL_FLIP] < 0.5, axis=1)  # noqa: PLR2004
    if geometric_transforms.has_affine(recipe):
        matrices = geometric_transforms.affine_matrices(uniforms, recipe, images.shape)
        sampled = geometric_transforms.warp_affine(images, matrices, recipe.edge, background)
        chosen = uniforms[:, Column.AFFINE] < recipe.affine_share  # (B,)
        images = torch.where(chosen[:, None, None, None], sampled, images.float())
    if recipe.max_blur_px:
        images = colour_transforms.blur(images.float(), uniforms, recipe)
    if recipe.brightness or recipe.contrast or recipe.saturation:
        images = colour_transforms.recolour(images.float(), uniforms, recipe)
    if recipe.trivial:
        images = trivial_augment(images.float(), uniforms, background)
    if recipe.erasing:
        images = colour_transforms.erase(images, uniforms, recipe)
    return images


def flip_coins(images: int, seed: int) -> Tensor:
    """Draw (images,) int64, 0 or 1, for alternating flips (Jordan 2024, arXiv:2404.00498)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (images,), generator=generator)
