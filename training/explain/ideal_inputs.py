"""Activation maximisation (Olah et al. 2017, doi:10.23915/distill.00007): ideal inputs.

Gradient ascent on an image in Fourier space with decorrelated colours, seen by the network through random
shifts, rotations and zooms. Without these the result is high-frequency noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from serving.bundle import Geometry
from serving.bundle.images import Pixels
from training.networks.network import Network

_RATE = 0.05
_DECAY = 1.0  # power of the frequency by which amplitudes fall: as in photographs
_COLOURS = 3
_SILENT = 1e-3
_NOISE = 0.03  # amplitude of the first image
_MAX_ROTATION = 0.12  # radians
_MAX_ZOOM = 0.08
_MAX_SHIFT = 0.08  # of the side

# Penalties on total variation and on distance from the mean colour; the gradient's root mean square is 1.
_ROUGHNESS = 0.2
_DISTANCE = 0.25

# Square root of the covariance of ImageNet's colours: brightness, blue to yellow, green to magenta.
_COLOUR_BASIS = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, slots=True)
class Ascent:
    """How long and from where images are optimised."""

    steps: int
    mean: tuple[float, ...]  # 0..1, mean colour of real images, one value per channel
    seed: int = 0


def ideal_inputs(
    network: Network, geometry: Geometry, score: Callable[[Tensor], Tensor], count: int, ascent: Ascent
) -> Pixels:
    """Find the images with the highest scores.

    Args:
        network: on the CPU, in evaluation mode.
        geometry: of its images.
        score: (N, H, W, C) float32, 0..255 -> (N,), to be maximised for each image apart.
        count: N images.
        ascent: steps, colour and seed.

    Returns: (N, H, W, C) uint8.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(ascent.seed)
    spectrum, scale = _spectrum(count, geometry, generator)
    optimizer = torch.optim.Adam([spectrum], lr=_RATE)
    start = torch.tensor(ascent.mean)[:, None, None]
    for parameter in trained:  # gradients of weights would take a third of the time
        parameter.requires_grad = False
    for _ in range(ascent.steps):
        optimizer.zero_grad()
        images = _decode(spectrum, scale, geometry, ascent.mean)  # (N, C, H, W), 0..1
        seen = _moved(images, generator, ascent.mean)
        (rise,) = torch.autograd.grad(
            score(255 * seen.permute(0, 2, 3, 1)).sum(), images, retain_graph=True
        )  # (N, C, H, W)
        size = rise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        loss = -(rise / size * images).mean(dim=(1, 2, 3))
        loss = (
            loss + _ROUGHNESS * _roughness(images) + _DISTANCE * (images - start).square().mean(dim=(1, 2, 3))
        )
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for parameter in trained:
        parameter.requires_grad = True
    with torch.no_grad():
        final = _decode(spectrum, scale, geometry, ascent.mean)
    return np.asarray((255 * final).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def class_score(logits: Callable[[Tensor], Tensor], labels: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Score images by the logit of one label each, above the mean of all."""
    rows, columns = torch.arange(len(labels)), torch.tensor(list(labels))

    def score(images: Tensor) -> Tensor:
        values = logits(images)  # (N, K)
        return values[rows, columns] - values.mean(dim=1)

    return score


def filter_score(
    logits: Callable[[Tensor], Tensor], layer: nn.Module, filters: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """Score images by one filter, or unit, each: the mean square of its positive outputs.

    The mean output itself would give plain colours for edge detectors: its gradient is the same everywhere.
    The output still counts a little, so that a filter that is silent at first has a gradient.
    """
    rows, columns = torch.arange(len(filters)), torch.tensor(list(filters))

    def score(images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            logits(images)
        finally:
            handle.remove()
        own = seen[-1][rows, columns].reshape(len(filters), -1)  # (N, h * w) or (N, 1)
        return (own.clamp(min=0).square() + _SILENT * own).mean(dim=1)

    return score


def _spectrum(count: int, geometry: Geometry, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random amplitudes, (N, C, H, W // 2 + 1, 2), and the scale of each frequency, (H, W // 2 + 1, 1)."""
    height, width = geometry.height, geometry.width
    down = torch.fft.fftfreq(height)[:, None]
    across = torch.fft.rfftfreq(width)[None]
    frequency = torch.sqrt(down**2 + across**2).clamp(min=1 / max(height, width))  # (H, W // 2 + 1)
    scale = frequency**-_DECAY * math.sqrt(height * width) / max(height, width)
    shape = count, geometry.channels, height, width // 2 + 1, 2
    return (_NOISE * torch.randn(shape, generator=generator)).requires_grad_(), scale[..., None]


def _decode(spectrum: Tensor, scale: Tensor, geometry: Geometry, mean: Sequence[float]) -> Tensor:
    """Amplitudes -> images, (N, C, H, W), 0..1."""
    size = geometry.height, geometry.width
    values = torch.fft.irfft2(torch.view_as_complex(spectrum * scale), s=size, norm="ortho")
    if geometry.channels == _COLOURS:
        values = torch.einsum("rc,nchw->nrhw", 4 * torch.tensor(_COLOUR_BASIS), values)
    start = torch.logit(torch.tensor(mean).clamp(0.02, 0.98))[:, None, None]
    return torch.sigmoid(values + start)


def _moved(images: Tensor, generator: torch.Generator, mean: Sequence[float]) -> Tensor:
    """Shift, rotate and zoom each image a little, differently at every step."""
    count = len(images)

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(count, generator=generator) - 1)

    angle, zoom = draw(_MAX_ROTATION), 1 + draw(_MAX_ZOOM)
    cosine, sine = zoom * torch.cos(angle), zoom * torch.sin(angle)
    matrix = torch.stack(
        [
            torch.stack([cosine, -sine, 2 * draw(_MAX_SHIFT)], dim=1),
            torch.stack([sine, cosine, 2 * draw(_MAX_SHIFT)], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    offset = torch.tensor(mean)[:, None, None]
    return functional.grid_sample(images - offset, grid, align_corners=False) + offset


def _roughness(images: Tensor) -> Tensor:
    """Total variation, as a mean over each image: (N,)."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
    return down + across
