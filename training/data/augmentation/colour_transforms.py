"""Blur, brightness, contrast, saturation and random erasing, with separate random numbers for each image."""

import torch
from torch import Tensor

from training.data.augmentation.uniforms import Column
from training.devices.kernels import full_precision
from training.recipe.sections import AugmentationRecipe

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in the bundle's geometry
_SMALLEST_ERASED_AREA = 0.02
_GREY = 127.5
_NO_BLUR_PX = 0.01  # standard deviation at which neighbours have no weight
_LARGEST_ERASED_ASPECT = 3.3  # height to width, or its inverse (Zhong et al. 2017, arXiv:1708.04896)


def grey(images: Tensor) -> Tensor:
    """Convert to luma: (B, H, W, C) float32 -> (B, H, W, 1) float32."""
    if images.shape[3] == 1:
        return images
    return (images * images.new_tensor(_LUMA)).sum(dim=3, keepdim=True)


def blend(images: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    """Interpolate or extrapolate: factor 1 gives the images, 0 gives `towards`. Clamped to 0..255.

    Args:
        images: (B, H, W, C) float32.
        towards: (B, H, W, C) or broadcastable.
        factor: (B,).
    """
    by = factor[:, None, None, None]
    return (images * by + towards * (1 - by)).clamp(0, 255)


def blur(images: Tensor, uniforms: Tensor, recipe: AugmentationRecipe) -> Tensor:
    """Blur each image by a Gaussian of random width: (B, H, W, C) float32, 0..255, in and out."""
    deviation_px = uniforms[:, Column.BLUR] * recipe.max_blur_px  # (B,)
    planes = images.permute(0, 3, 1, 2)  # (B, C, H, W)
    down, across = (_gaussian(size, deviation_px)[:, None] for size in planes.shape[2:])
    with full_precision(images.device):  # TF32 would round the pixels
        blurred = down @ planes @ across.mT  # (B, C, H, W)
    return blurred.permute(0, 2, 3, 1)


def recolour(images: Tensor, uniforms: Tensor, recipe: AugmentationRecipe) -> Tensor:
    """Change brightness, contrast and saturation, in this order: (B, H, W, C) float32, 0..255, in and out."""
    if recipe.brightness:
        images = blend(
            images, torch.zeros_like(images), _factor(uniforms[:, Column.BRIGHTNESS], recipe.brightness)
        )
    if recipe.contrast:
        mean = grey(images).mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
        images = blend(images, mean, _factor(uniforms[:, Column.CONTRAST], recipe.contrast))
    if recipe.saturation:
        images = blend(images, grey(images), _factor(uniforms[:, Column.SATURATION], recipe.saturation))
    return images


def erase(images: Tensor, uniforms: Tensor, recipe: AugmentationRecipe) -> Tensor:
    """Cover a random rectangle of some images with grey: (B, H, W, C) float32 or uint8, in and out."""
    _, height, width, _ = images.shape
    span = recipe.max_erased_area - _SMALLEST_ERASED_AREA
    area = (_SMALLEST_ERASED_AREA + uniforms[:, Column.ERASED_AREA] * span) * height * width  # (B,) pixels
    aspect = _LARGEST_ERASED_ASPECT ** (2 * uniforms[:, Column.ERASED_ASPECT] - 1)
    box_height = torch.sqrt(area * aspect).clamp(max=height)
    box_width = torch.sqrt(area / aspect).clamp(max=width)
    top = uniforms[:, Column.ERASED_Y] * (height - box_height)
    left = uniforms[:, Column.ERASED_X] * (width - box_width)
    row = torch.arange(height, device=images.device)[None, :, None]
    column = torch.arange(width, device=images.device)[None, None, :]
    inside = _within(row, top, box_height) & _within(column, left, box_width)  # (B, H, W)
    chosen = inside & (uniforms[:, Column.ERASE] < recipe.erasing)[:, None, None]
    return torch.where(chosen[..., None], torch.full_like(images, _GREY), images)


def _gaussian(size: int, deviation_px: Tensor) -> Tensor:
    """(B,) -> (B, size, size): a blur along one axis as a matrix; rows are renormalised at the edges."""
    position = torch.arange(size, device=deviation_px.device)
    distance = (position[:, None] - position) / deviation_px.clamp(min=_NO_BLUR_PX)[:, None, None]
    weights = torch.exp(-(distance**2) / 2)
    return weights / weights.sum(dim=2, keepdim=True)


def _factor(uniforms: Tensor, reach: float) -> Tensor:
    return 1 + (2 * uniforms - 1) * reach


def _within(position: Tensor, start: Tensor, length: Tensor) -> Tensor:
    begin = start.round()[:, None, None]
    return (position >= begin) & (position < begin + length.round()[:, None, None])
