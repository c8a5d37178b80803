"""Classic kernels equal scipy's and torch's, with padding and stride."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from training.explain.kernels import Window, convolve, draw_kernels, median

SHARPEN = ((0, -1, 0), (-1, 5, -1), (0, -1, 0))


@pytest.mark.parametrize("window", [Window(), Window(0, 1), Window(0, 2), Window(2, 3)])
def test_kernels_are_convolutions_of_torch(window: Window) -> None:
    """The same numbers, at every padding and stride."""
    image = np.random.default_rng(0).random((17, 12, 3), np.float32)
    weights = torch.tensor(SHARPEN).float().expand(3, 1, 3, 3)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = functional.conv2d(planes, weights, stride=window.stride, padding=window.padding, groups=3)
    found = convolve(image, SHARPEN, window)
    assert found.shape == (window.size(17), window.size(12), 3)
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_the_median_is_scipys() -> None:
    """With zeros around the image."""
    image = np.random.default_rng(0).random((9, 8, 1), np.float32)
    expected = ndimage.median_filter(image[..., 0], 3, mode="constant")
    np.testing.assert_array_equal(median(image, Window())[..., 0], expected)


def test_the_picture_prints_the_arithmetic() -> None:
    """Nine pictures, and the size of their outputs as a formula."""
    image = np.asarray(Image.linear_gradient("L"))[:40, :30, None]
    picture = draw_kernels(image, Window(padding=0, stride=2))
    assert "(40 + 2 x 0 - 3) // 2 + 1 = 19 rows, (30 + 2 x 0 - 3) // 2 + 1 = 14 columns" in picture.caption
    assert picture.png.startswith(b"\x89PNG")
