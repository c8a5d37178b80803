"""Classic kernels on an image: what a convolution does, before any of it is learned."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from serving.bundle.images import Pixels
from training.explain.picture import Picture, Tile, draw_grid, signed

Floats = npt.NDArray[np.float32]

_SIDE = 3  # of every kernel
_TILE = 264  # pixels
_ACROSS = 3
_FULL_COLOUR = 0.99  # of the edges are paler

_KERNELS: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "edge (Laplacian)": ((0, -1, 0), (-1, 4, -1), (0, -1, 0)),
    "Sobel, left to right": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "Sobel, top to bottom": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "box blur": ((1 / 9,) * 3,) * 3,
    "Gaussian blur": ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
}
_WITH_SIGN = ("edge (Laplacian)", "Sobel, left to right", "Sobel, top to bottom")


@dataclass(frozen=True, slots=True)
class Window:
    """How a 3 x 3 window moves over an image."""

    padding: int = 1  # pixels of zeros on every side
    stride: int = 1  # pixels

    def size(self, length: int) -> int:
        """How many positions it has along an axis."""
        return (length + 2 * self.padding - _SIDE) // self.stride + 1


def convolve(image: Floats, kernel: tuple[tuple[float, ...], ...], window: Window) -> Floats:
    """Cross-correlate each channel, as convolutional layers do: (H, W, C) -> (h, w, C)."""
    return np.asarray(np.einsum("ijcuv,uv->ijc", _windows(image, window), np.array(kernel, np.float32)))


def median(image: Floats, window: Window) -> Floats:
    """The median of each window, which no convolution can compute: (H, W, C) -> (h, w, C)."""
    return np.asarray(np.median(_windows(image, window), axis=(3, 4)))


def draw_kernels(image: Pixels, window: Window) -> Picture:
    """Draw an image, and what each classic kernel makes of it.

    Args:
        image: (H, W, 1 or 3).
        window: padding and stride.
    """
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    height, width = image.shape[:2]
    tiles = [Tile(image, f"the image\n{height} x {width}")]
    for name, kernel in _KERNELS.items():
        if name in _WITH_SIGN:
            edges = convolve(grey, kernel, window)[..., 0]
            shown = signed(edges, float(np.quantile(np.abs(edges), _FULL_COLOUR)) or None)
        else:
            shown = _clipped(convolve(pixels, kernel, window))
        tiles.append(Tile(shown, f"{name}\n{_written(kernel)}"))
    both = [convolve(grey, _KERNELS[name], window)[..., 0] for name in _WITH_SIGN[1:]]
    strength = np.hypot(both[0], both[1]).astype(np.float32)  # (h, w)
    tiles.insert(4, Tile(_clipped(255 * strength[..., None] / (strength.max() or 1.0)), "Sobel, strength"))
    tiles.append(Tile(_clipped(median(pixels, window)), "median of 3 x 3"))
    out = window.size(height), window.size(width)
    caption = (
        f"Classic 3 x 3 kernels with padding {window.padding} and stride {window.stride}: "
        f"({height} + 2 x {window.padding} - 3) // {window.stride} + 1 = {out[0]} rows, "
        f"({width} + 2 x {window.padding} - 3) // {window.stride} + 1 = {out[1]} columns. Edges are red "
        "where the kernel gives a positive value, blue where it gives a negative one. The padding is black, "
        "so it may look like an edge."
    )
    rows = [tiles[start : start + _ACROSS] for start in range(0, len(tiles), _ACROSS)]
    alt = f"One image and the outputs of nine filters, {out[0]} x {out[1]} pixels each"
    return Picture("kernels", caption, alt, draw_grid(rows, side=_TILE))


def _windows(image: Floats, window: Window) -> Floats:
    """(H, W, C) -> (h, w, C, 3, 3)."""
    padded = np.pad(image, ((window.padding,) * 2, (window.padding,) * 2, (0, 0)))
    views = sliding_window_view(padded, (_SIDE, _SIDE), axis=(0, 1))
    return np.asarray(views[:: window.stride, :: window.stride])


def _clipped(values: Floats) -> Pixels:
    return np.asarray(np.rint(values).clip(0, 255), np.uint8)


def _written(kernel: tuple[tuple[float, ...], ...]) -> str:
    """The numbers of a kernel, with a common divisor if they are fractions."""
    values = np.array(kernel)
    divisor = next(each for each in (1, 9, 16) if np.allclose(each * values, np.rint(each * values)))
    rows = " / ".join(" ".join(f"{round(divisor * value)}" for value in row) for row in kernel)
    return rows if divisor == 1 else f"({rows}) : {divisor}"
