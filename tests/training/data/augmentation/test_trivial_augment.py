"""TrivialAugment's operations against their definitions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.data.augmentation import trivial_augment
from training.data.augmentation.uniforms import Column, draw_uniforms
from training.networks.torchvision_import import import_torchvision

v2 = import_torchvision("torchvision.transforms.v2.functional")
BILINEAR = v2.InterpolationMode.BILINEAR
SIDE = 56


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


# Strength -1..1 -> torchvision's operation at the magnitude that its TrivialAugmentWide has for it.
REFERENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "_leave": lambda planes, _: planes,
    "_rotate": lambda planes, strength: v2.rotate(planes, 135.0 * strength, BILINEAR, fill=0),
    "_shear_x": lambda planes, strength: _affine(planes, shear=[_degrees(0.99 * strength), 0.0]),
    "_shear_y": lambda planes, strength: _affine(planes, shear=[0.0, _degrees(0.99 * strength)]),
    "_move_x": lambda planes, strength: _affine(planes, translate=[-round(strength * SIDE / 7), 0]),
    "_move_y": lambda planes, strength: _affine(planes, translate=[0, -round(strength * SIDE / 7)]),
    "_brighten": lambda planes, strength: v2.adjust_brightness(planes, 1 + 0.99 * strength),
    "_contrast": lambda planes, strength: v2.adjust_contrast(planes, 1 + 0.99 * strength),
    "_saturate": lambda planes, strength: v2.adjust_saturation(planes, 1 + 0.99 * strength),
    "_sharpen": lambda planes, strength: v2.adjust_sharpness(planes, 1 + 0.99 * strength),
    "_posterize": lambda planes, strength: v2.posterize(planes, 8 - round(6 * abs(strength))),
    "_solarize": lambda planes, strength: v2.solarize(planes, 255 * (1 - abs(strength))),
    "_stretch_contrast": lambda planes, _: v2.autocontrast(planes),
    "_equalize": lambda planes, _: v2.equalize(planes),
}


@pytest.mark.parametrize("strength", [-1.0, -0.5, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("name", list(REFERENCES))
def test_each_operation_is_torchvisions(name: str, strength: float) -> None:
    """All fourteen, within a level; the geometric ones away from the background."""
    names = [operation.__name__ for operation in trivial_augment._OPERATIONS]
    assert set(names) == set(REFERENCES)
    noise = torch.randint(-40, 40, (6, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(1))
    moves = name in {"_rotate", "_shear_x", "_shear_y", "_move_x", "_move_y"}
    images = photographs(side=SIDE) if moves else (photographs(side=SIDE) + noise).clamp(0, 255)
    expected = REFERENCES[name](images.byte().permute(0, 3, 1, 2), strength).permute(0, 2, 3, 1).float()
    apart = (operate(names.index(name), images, strength) - expected).abs()
    if moves:  # torchvision mixes the background into the pixels beside it in another way
        assert float((apart.amax(dim=3) > 1.5).float().mean()) < 0.05
    else:
        assert float(apart.max()) <= 2.0  # torchvision cuts to whole levels, of grey as well


def test_a_picture_too_small_to_smooth_stays_as_it_is() -> None:
    """Two pixels across have no inside."""
    images = photographs(side=16)[:, :2]
    number = [operation.__name__ for operation in trivial_augment._OPERATIONS].index("_sharpen")
    assert torch.equal(operate(number, images, 1.0), images)


def test_every_operation_is_drawn_and_images_differ() -> None:
    """A large batch gets all operations; about one image in fourteen is unchanged."""
    images = photographs(1).expand(400, -1, -1, -1)
    results = trivial_augment.trivial_augment(images, draw_uniforms(400, seed=0, epoch=0, step=0), 0)
    untouched = sum(torch.equal(a, b) for a, b in zip(images, results, strict=True))
    assert 10 < untouched < 80
    assert len({result.numpy().tobytes() for result in results}) > 250


def _degrees(shear: float) -> float:
    return math.degrees(math.atan(shear))


def _affine(
    planes: Tensor, *, translate: list[float] | None = None, shear: list[float] | None = None
) -> Tensor:
    return v2.affine(planes, 0.0, translate or [0, 0], 1.0, shear or [0.0, 0.0], BILINEAR, fill=0)
