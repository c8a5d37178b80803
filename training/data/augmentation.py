"""Random changes to training images that leave their meaning. Draws from torch's global CPU generator."""

import torch
from torch import Tensor
from torch.nn import functional


def shift_randomly(images: Tensor, max_shift_px: int, background: int) -> Tensor:
    """Move each image by its own whole number of pixels along each axis.

    The numbers are drawn on the CPU whatever the images' device, so that one generator's state is all that a
    checkpoint has to keep.

    Args:
        images: (B, H, W, C) uint8.
        max_shift_px: 0 gives the images back.
        background: 0..255, what comes in at the edges.

    Returns: (B, H, W, C) uint8.
    """
    if not max_shift_px:
        return images
    count, height, width, _ = images.shape
    reach = max_shift_px
    padded = functional.pad(images, (0, 0, reach, reach, reach, reach), value=background)
    offsets = torch.randint(0, 2 * reach + 1, (2, count, 1, 1)).to(images.device)
    down = torch.arange(height, device=images.device)[None, :, None] + offsets[0]  # (B, H, 1)
    right = torch.arange(width, device=images.device)[None, None, :] + offsets[1]  # (B, 1, W)
    item = torch.arange(count, device=images.device)[:, None, None]  # (B, 1, 1)
    return padded[item, down, right]  # (B, H, W, C)
