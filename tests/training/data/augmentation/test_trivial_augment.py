"""TrivialAugment's operations against their definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.data.augmentation import trivial_augment
from training.data.augmentation.uniforms import Column, draw_uniforms


def photographs(count: int = 6, channels: int = 3, side: int = 16) -> Tensor:
    """Soft random images, (N, side, side, C) float32, with whole grey levels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((count, channels, 4, 4), generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, side, mode="bilinear").permute(0, 2, 3, 1).round()


def operate(number: int, images: Tensor, strength: float) -> Tensor:
    """Apply one operation to all images."""
    uniforms = torch.zeros(len(images), len(Column))
    uniforms[:, Column.TRIVIAL_OPERATION] = (number + 0.5) / len(trivial_augment._OPERATIONS)
    uniforms[:, Column.TRIVIAL_STRENGTH] = (strength + 1) / 2
    return trivial_augment.trivial_augment(images, uniforms, 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", range(len(trivial_augment._OPERATIONS)))
def test_each_operation_keeps_shape_and_range(number: int, channels: int) -> None:
    """At both ends of its strength, on grey and on colour."""
    images = photographs(channels=channels)
    for strength in (-1.0, 0.99):
        result = operate(number, images, strength)
        assert result.shape == images.shape
        assert -1e-3 <= float(result.min()) <= float(result.max()) <= 255.001


@pytest.mark.parametrize(
    ("name", "reference", "levels"),
    [("_equalize", ImageOps.equalize, 8.0), ("_stretch_contrast", ImageOps.autocontrast, 1.5)],
)
def test_tables_of_levels_are_pillows(
    name: str, reference: Callable[[Image.Image], Image.Image], levels: float
) -> None:
    """Close to Pillow, which rounds its tables to integers."""
    image = photographs(1, side=128)
    number = [operation.__name__ for operation in trivial_augment._OPERATIONS].index(name)
    found = operate(number, image, 0.0)[0]
    pillow = reference(Image.fromarray(image[0].byte().numpy()))
    expected = torch.from_numpy(np.array(pillow)).float()
    assert float((expected - found).abs().max()) <= levels
    assert float((image[0] - found).abs().max()) > 10


def test_every_operation_is_drawn_and_images_differ() -> None:
    """A large batch gets all operations; about one image in fourteen is unchanged."""
    images = photographs(1).expand(400, -1, -1, -1)
    results = trivial_augment.trivial_augment(images, draw_uniforms(400, seed=0, epoch=0, step=0), 0)
    untouched = sum(torch.equal(a, b) for a, b in zip(images, results, strict=True))
    assert 10 < untouched < 80
    assert len({result.numpy().tobytes() for result in results}) > 250
