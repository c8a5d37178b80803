"""TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158): a random operation of random strength per image.

The fourteen operations and wide ranges of the paper. Each operation runs once per batch, on the images that
drew it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from training.data.augmentation.colour_transforms import blend, grey
from training.data.augmentation.geometric_transforms import warp_affine
from training.data.augmentation.uniforms import Column

_MAX_TURN_DEGREES = 135.0
_MAX_SHEAR = 0.99
_MAX_SHIFT = 32 / 224  # of a side; the paper shifts images of 224 pixels by up to 32
_MAX_BLEND = 0.99
_FEWEST_BITS, _MOST_BITS = 2, 8
_BORDERS = 2  # pixels across that a smoothing filter of 3x3 leaves as they are

# Images (b, H, W, C) float32, strength (b,) -1..1, background 0..255.
Operation = Callable[[Tensor, Tensor, int], Tensor]


def trivial_augment(images: Tensor, uniforms: Tensor, background: int) -> Tensor:
    """Apply one random operation to each image.

    Args:
        images: (B, H, W, C) float32, 0..255.
        uniforms: (B, len(Column)), 0..1.
        background: 0..255, fills pixels beyond the edge.

    Returns: (B, H, W, C) float32, 0..255.
    """
    chosen = (uniforms[:, Column.TRIVIAL_OPERATION] * len(_OPERATIONS)).long()  # (B,)
    strength = 2 * uniforms[:, Column.TRIVIAL_STRENGTH] - 1  # (B,), -1..1
    changed = images.clone()
    for number, operation in enumerate(_OPERATIONS):
        drew_it = (chosen == number).nonzero()[:, 0]  # (b,)
        if len(drew_it):
            changed[drew_it] = operation(images[drew_it], strength[drew_it], background)
    return changed


def _affine(*entries: Tensor) -> Tensor:
    """Six entries (b,), row by row -> (b, 2, 3)."""
    return torch.stack(entries, dim=1).view(-1, 2, 3)


def _rotate(images: Tensor, strength: Tensor, background: int) -> Tensor:
    height, width = images.shape[1:3]
    turn, zero = strength * math.radians(_MAX_TURN_DEGREES), torch.zeros_like(strength)
    cosine, sine = torch.cos(turn), torch.sin(turn)
    matrices = _affine(cosine, -sine * height / width, zero, sine * width / height, cosine, zero)
    return warp_affine(images, matrices, "background", background)


def _shear_x(images: Tensor, strength: Tensor, background: int) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    matrices = _affine(one, strength * _MAX_SHEAR, zero, zero, one, zero)
    return warp_affine(images, matrices, "background", background)


def _shear_y(images: Tensor, strength: Tensor, background: int) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    matrices = _affine(one, zero, zero, strength * _MAX_SHEAR, one, zero)
    return warp_affine(images, matrices, "background", background)


def _move_x(images: Tensor, strength: Tensor, background: int) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    matrices = _affine(one, zero, 2 * strength * _MAX_SHIFT, zero, one, zero)
    return warp_affine(images, matrices, "background", background)


def _move_y(images: Tensor, strength: Tensor, background: int) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    matrices = _affine(one, zero, zero, zero, one, 2 * strength * _MAX_SHIFT)
    return warp_affine(images, matrices, "background", background)


def _leave(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del strength, background
    return images


def _brighten(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del background
    return blend(images, torch.zeros_like(images), 1 + strength * _MAX_BLEND)


def _contrast(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del background
    return blend(images, grey(images).mean(dim=(1, 2, 3), keepdim=True), 1 + strength * _MAX_BLEND)


def _saturate(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del background
    return blend(images, grey(images), 1 + strength * _MAX_BLEND)


def _sharpen(images: Tensor, strength: Tensor, background: int) -> Tensor:
    """Blend with a smoothed image, as Pillow does: weight 5 in the middle, 1 around it; the border stays."""
    del background
    if min(images.shape[1:3]) <= _BORDERS:
        return images
    smooth = images.clone()
    planes = images.permute(0, 3, 1, 2)  # (b, C, H, W)
    around = 9 * functional.avg_pool2d(planes, 3, stride=1)  # (b, C, H - 2, W - 2), the sum of nine pixels
    inside = (around + 4 * planes[:, :, 1:-1, 1:-1]) / 13
    smooth[:, 1:-1, 1:-1] = inside.permute(0, 2, 3, 1).round()
    return blend(images, smooth, 1 + strength * _MAX_BLEND)


def _posterize(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del background
    bits = (_MOST_BITS - strength.abs() * (_MOST_BITS - _FEWEST_BITS)).round()  # (b,)
    step = (2 ** (_MOST_BITS - bits))[:, None, None, None]
    return torch.floor(images / step) * step


def _solarize(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del background
    threshold = (255 * (1 - strength.abs()))[:, None, None, None]
    return torch.where(images >= threshold, 255 - images, images)


def _stretch_contrast(images: Tensor, strength: Tensor, background: int) -> Tensor:
    del strength, background
    low, high = images.amin(dim=(1, 2), keepdim=True), images.amax(dim=(1, 2), keepdim=True)  # (b, 1, 1, C)
    stretched = (images - low) * (255 / (high - low).clamp(min=1))
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, strength: Tensor, background: int) -> Tensor:
    """Spread the levels of each channel evenly by Pillow's table, as torchvision does."""
    del strength, background
    count, height, width, channels = images.shape
    levels = images.round().long().permute(0, 3, 1, 2).reshape(count * channels, -1)  # (b * C, H * W)
    histogram = levels.new_zeros(count * channels, 256).scatter_add_(1, levels, torch.ones_like(levels))
    below = histogram.cumsum(dim=1) - histogram  # (b * C, 256), pixels darker than each level
    brightest = histogram.gather(1, levels.amax(dim=1, keepdim=True))  # (b * C, 1), pixels of that level
    step = (height * width - brightest) // 255  # (b * C, 1), pixels a level
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    spread = table.gather(1, levels).reshape(count, channels, height, width).permute(0, 2, 3, 1)
    too_few = (step == 0).reshape(
        count, 1, 1, channels
    )  # pixels beside the brightest ones: the channel stays
    return torch.where(too_few, images, spread.to(images.dtype))


_OPERATIONS: tuple[Operation, ...] = (
    _leave, _rotate, _shear_x, _shear_y, _move_x, _move_y, _brighten, _contrast,
    _saturate, _sharpen, _posterize, _solarize, _stretch_contrast, _equalize,
)  # fmt: skip
