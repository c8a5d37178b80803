"""Random changes to training images that leave their meaning: the order in which a recipe's changes apply."""

import torch
from torch import Tensor

from training.data.augmentation import colour_changes, geometry_changes
from training.data.augmentation.trivial import augment_trivially
from training.data.augmentation.uniforms import Use
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
    """Change each image by its own row of uniform numbers.

    Args:
        images: (B, H, W, C) uint8.
        uniforms: (B, len(Use)) float32, 0..1, on the images' device.
        recipe: what may change, and by how much. All zero gives the images back.
        background: 0..255, of the geometry.
        epoch: from 0, for alternating flips.
        coins: (B,) 0 or 1, each image's own through all epochs.

    Returns: (B, H, W, C), uint8, or float32 0..255 where pixels were mixed.
    """
    if recipe.max_shift_px:
        images = geometry_changes.shift(images, uniforms, recipe, background)
    if recipe.flip != "none":
        alternating = recipe.flip == "alternating"
        mirrored = (coins + epoch) % 2 == 1 if alternating else uniforms[:, Use.FLIP] < 0.5  # noqa: PLR2004
        images = geometry_changes.mirror(images, mirrored, axis=2)
    if recipe.vertical_flip:
        images = geometry_changes.mirror(images, uniforms[:, Use.VERTICAL_FLIP] < 0.5, axis=1)  # noqa: PLR2004
    if geometry_changes.is_affine(recipe):
        matrices = geometry_changes.affine(uniforms, recipe, images.shape)
        sampled = geometry_changes.sample(images, matrices, recipe.edge, background)
        chosen = uniforms[:, Use.AFFINE] < recipe.affine_share  # (B,)
        images = torch.where(chosen[:, None, None, None], sampled, images.float())
    if recipe.max_blur_px:
        images = colour_changes.blur(images.float(), uniforms, recipe)
    if recipe.brightness or recipe.contrast or recipe.saturation:
        images = colour_changes.recolour(images.float(), uniforms, recipe)
    if recipe.trivial:
        images = augment_trivially(images.float(), uniforms, background)
    if recipe.erasing:
        images = colour_changes.erase(images, uniforms, recipe)
    return images


def flip_coins(images: int, seed: int) -> Tensor:
    """(images,) int64, 0 or 1: which images are mirrored in odd epochs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (images,), generator=generator)
