"""Shift, rotation, zoom, crop and flip of a batch, with separate random numbers for each image.

Rotation, zoom and crop form one affine map per image, and the batch is resampled in a single call.
torchvision's transforms apply one draw to the whole batch, or handle one image at a time.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from training.data.augmentation.uniforms import Column
from training.devices.kernels import full_precision
from training.recipe.sections import AugmentationRecipe

_LARGEST_ASPECT = 4 / 3  # of a crop, width to height, or its inverse


def shift(images: Tensor, uniforms: Tensor, recipe: AugmentationRecipe, background: int) -> Tensor:
    """Shift each image by a random whole number of pixels on each axis, without resampling.

    Args:
        images: (B, H, W, C) of any dtype.
        uniforms: (B, len(Column)), 0..1.
        recipe: the largest shift, and how pixels beyond the edge are filled.
        background: 0..255, the fill of edge=background.

    Returns: (B, H, W, C), of the same dtype.
    """
    count, height, width, _ = images.shape
    reach = recipe.max_shift_px
    padded = _pad(images, reach, recipe.edge, background)
    offsets = (uniforms[:, (Column.SHIFT_Y, Column.SHIFT_X)] * (2 * reach + 1)).long()  # (B, 2), 0..2 * reach
    down = torch.arange(height, device=images.device)[None, :, None] + offsets[:, 0, None, None]  # (B, H, 1)
    right = torch.arange(width, device=images.device)[None, None, :] + offsets[:, 1, None, None]  # (B, 1, W)
    item = torch.arange(count, device=images.device)[:, None, None]  # (B, 1, 1)
    return padded[item, down, right]  # (B, H, W, C)


def mirror(images: Tensor, mirrored: Tensor, axis: int) -> Tensor:
    """Flip the images with mirrored=True, (B,) bool, along an axis of (B, H, W, C)."""
    return torch.where(mirrored[:, None, None, None], images.flip(axis), images)


def has_affine(recipe: AugmentationRecipe) -> bool:
    """Check whether the recipe rotates, zooms or crops."""
    return recipe.max_rotation_degrees > 0 or recipe.max_zoom > 0 or recipe.min_crop_area < 1


def affine_matrices(uniforms: Tensor, recipe: AugmentationRecipe, shape: torch.Size) -> Tensor:
    """Draw one affine map per image, from output to input in grid_sample's coordinates (-1..1, edge to edge).

    Args:
        uniforms: (B, len(Column)), 0..1.
        recipe: the bounds of rotation, zoom and crop.
        shape: (B, H, W, C).

    Returns: (B, 2, 3) float32.
    """
    _, height, width, _ = shape
    turn = (2 * uniforms[:, Column.ROTATION] - 1) * math.radians(recipe.max_rotation_degrees)  # (B,)
    scale = 1 / (1 + (2 * uniforms[:, Column.ZOOM] - 1) * recipe.max_zoom)  # (B,), size of the sampled region
    area = 1 - uniforms[:, Column.CROP_AREA] * (1 - recipe.min_crop_area)  # (B,)
    aspect = _LARGEST_ASPECT ** (2 * uniforms[:, Column.CROP_ASPECT] - 1) if recipe.min_crop_area < 1 else 1.0
    crop_width = torch.clamp(torch.sqrt(area * aspect), max=1.0)  # (B,), of the image's width
    crop_height = torch.clamp(torch.sqrt(area / aspect), max=1.0)
    right = (2 * uniforms[:, Column.CROP_X] - 1) * (1 - crop_width)  # (B,), of the crop's centre
    down = (2 * uniforms[:, Column.CROP_Y] - 1) * (1 - crop_height)
    cosine, sine = torch.cos(turn) * scale, torch.sin(turn) * scale
    # A rotation in pixels: the coordinates of a non-square image are stretched.
    rows = [
        cosine * crop_width, -sine * crop_height * (height / width), right,
        sine * crop_width * (width / height), cosine * crop_height, down,
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp_affine(images: Tensor, matrices: Tensor, edge: str, background: int) -> Tensor:
    """Resample each image by its affine map, bilinearly.

    Args:
        images: (B, H, W, C) of any dtype, 0..255.
        matrices: (B, 2, 3), as `affine_matrices` returns them.
        edge: "background" or "reflect", how pixels beyond the edge are filled.
        background: 0..255, the fill of edge="background".

    Returns: (B, H, W, C) float32, 0..255.
    """
    planes = images.permute(0, 3, 1, 2).float() - background  # (B, C, H, W)
    # The grid is a matrix product: TF32's 10-bit fraction would shift it by up to 0.05 pixels at 224 x 224.
    with full_precision(images.device):
        grid = functional.affine_grid(matrices, list(planes.shape), align_corners=False)  # (B, H, W, 2)
    padding = "reflection" if edge == "reflect" else "zeros"
    sampled = functional.grid_sample(planes, grid, padding_mode=padding, align_corners=False)
    return (sampled + background).permute(0, 2, 3, 1)


def _pad(images: Tensor, reach: int, edge: str, background: int) -> Tensor:
    if edge == "background":
        return functional.pad(images, (0, 0, reach, reach, reach, reach), value=background)
    _, height, width, _ = images.shape
    rows, columns = (_reflected(length, reach, images.device) for length in (height, width))
    return images[:, rows][:, :, columns]


def _reflected(length: int, reach: int, device: torch.device) -> Tensor:
    """Indices -reach..length + reach - 1, reflected at the edges without repeating the edge pixel.

    Computed on the device: a copy from the CPU would wait for queued kernels.
    """
    period = max(1, 2 * (length - 1))
    folded = torch.arange(-reach, length + reach, device=device) % period
    return torch.minimum(folded, period - folded)
