"""The augmentation pipeline: each transform, its bounds, and separate draws for each image."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from training.data.augmentation.geometric_transforms import affine_matrices, shift, warp_affine
from training.data.augmentation.pipeline import augment, flip_coins
from training.data.augmentation.uniforms import Column, draw_uniforms
from training.recipe.sections import AugmentationRecipe

BACKGROUND = 7


def photographs(count: int = 4, height: int = 12, width: int = 10, channels: int = 3) -> Tensor:
    """Random images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


def changed(images: Tensor, *, epoch: int = 0, coins: Tensor | None = None, **settings: object) -> Tensor:
    """Augment images by these settings."""
    recipe = AugmentationRecipe.model_validate(settings)
    return augment(
        images,
        draw_uniforms(len(images), seed=0, epoch=epoch, step=0),
        recipe,
        background=BACKGROUND,
        epoch=epoch,
        coins=torch.zeros(len(images), dtype=torch.int64) if coins is None else coins,
    )


def test_no_augmentation_returns_the_images_unchanged() -> None:
    """A recipe without augmentation returns the images unchanged."""
    images = photographs()
    assert changed(images) is images


def test_numbers_follow_from_seed_epoch_and_step_alone() -> None:
    """Equal for equal seed, epoch and step, different otherwise; no global generator is used."""
    before = torch.get_rng_state()
    numbers = draw_uniforms(5, seed=1, epoch=2, step=3)
    assert torch.equal(numbers, draw_uniforms(5, seed=1, epoch=2, step=3))
    assert not torch.equal(numbers, draw_uniforms(5, seed=1, epoch=2, step=4))
    assert torch.equal(before, torch.get_rng_state())
    assert numbers.shape == (5, len(Column))
    assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1


def test_columns_added_later_leave_older_ones_unchanged() -> None:
    """The columns before BLUR are those drawn before blur existed."""
    numbers = draw_uniforms(3, seed=0, epoch=1, step=2)
    before = np.random.default_rng([0, 1, 2, 1]).random((3, Column.BLUR), dtype=np.float32)
    assert np.array_equal(numbers[:, : Column.BLUR].numpy(), before)


def test_shift_moves_each_image_by_whole_pixels_over_the_background() -> None:
    """Every result is a window of the padded image, and images shift differently."""
    images = photographs(count=30)
    moved = changed(images, max_shift_px=2)
    padded = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2), value=BACKGROUND)
    offsets = set()
    for image, result in zip(padded, moved, strict=True):
        fitting = {
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.equal(image[down : down + 12, right : right + 10], result)
        }
        assert len(fitting) == 1
        offsets |= fitting
    assert len(offsets) > 10


def test_reflected_edges_are_torchs_own() -> None:
    """The window comes from torch's reflect padding."""
    images = photographs(count=3)
    recipe = AugmentationRecipe(max_shift_px=3, edge="reflect")
    corner = torch.zeros(3, len(Column))
    planes = images.permute(0, 3, 1, 2).float()
    padded = torch.nn.functional.pad(planes, (3, 3, 3, 3), mode="reflect").permute(0, 2, 3, 1)
    assert torch.equal(shift(images, corner, recipe, 0).float(), padded[:, :12, :10])


def test_alternating_flips_show_each_side_every_other_epoch() -> None:
    """In two consecutive epochs every image appears once plain and once mirrored."""
    images = photographs(count=20)
    coins = flip_coins(20, seed=0)
    assert 0 < int(coins.sum()) < 20
    first = changed(images, epoch=0, coins=coins, flip="alternating")
    second = changed(images, epoch=1, coins=coins, flip="alternating")
    assert torch.equal(first, second.flip(2))
    assert torch.equal(changed(images, epoch=2, coins=coins, flip="alternating"), first)


def test_random_flips_mirror_some_images() -> None:
    """Each image is plain or mirrored, and both occur; likewise for vertical flips."""
    images = photographs(count=40)
    for settings, axis in (({"flip": "random"}, 2), ({"vertical_flip": True}, 1)):
        results = changed(images, **settings)
        same = [torch.equal(a, b) for a, b in zip(images, results, strict=True)]
        mirrored = [torch.equal(a, b) for a, b in zip(images.flip(axis), results, strict=True)]
        assert all(a != b for a, b in zip(same, mirrored, strict=True))
        assert 5 < sum(same) < 35


def test_the_identity_map_samples_the_image_itself() -> None:
    """Without rotation, zoom or crop the affine map is the identity."""
    images = photographs()
    matrices = affine_matrices(
        torch.full((4, len(Column)), 0.5), AugmentationRecipe(max_zoom=0.5), images.shape
    )
    assert torch.allclose(warp_affine(images, matrices, "background", 0), images.float(), atol=1e-3)


def test_a_quarter_turn_turns_pixels() -> None:
    """At 90 degrees a square image is rotated as by torch.rot90, in both directions."""
    images = photographs(height=9, width=9)
    recipe = AugmentationRecipe(max_rotation_degrees=90)
    for end, turns in ((0.0, -1), (1.0, 1)):
        matrices = affine_matrices(torch.full((4, len(Column)), end), recipe, images.shape)
        turned = warp_affine(images, matrices, "background", 0)
        assert torch.allclose(turned, torch.rot90(images, turns, (1, 2)).float(), atol=1e-2)


def test_a_turn_keeps_distances_on_images_that_are_not_square() -> None:
    """A dot four pixels right of the centre moves to four pixels above or below it."""
    images = torch.zeros((1, 21, 41, 1), dtype=torch.uint8)
    images[0, 10, 24] = 255
    matrices = affine_matrices(
        torch.zeros(1, len(Column)), AugmentationRecipe(max_rotation_degrees=90), images.shape
    )
    turned = warp_affine(images, matrices, "background", 0)[0, :, :, 0]
    row, column = divmod(int(turned.argmax()), 41)
    assert (abs(row - 10), column) == (4, 20)


def test_a_share_of_the_images_stays_sharp() -> None:
    """About half are rotated; the others are unchanged to the bit."""
    images = photographs(count=60)
    turned = changed(images, max_rotation_degrees=30, affine_share=0.5)
    same = [torch.equal(a.float(), b) for a, b in zip(images, turned, strict=True)]
    assert 15 < sum(same) < 45


def test_a_crop_enlarges_a_part() -> None:
    """A quarter of the area of a ramp spans about half of its values."""
    ramp = torch.arange(0, 200, 2, dtype=torch.uint8).expand(8, 100, 100).unsqueeze(3)
    cropped = changed(ramp, min_crop_area=0.2)
    spans = cropped.amax(dim=(1, 2, 3)) - cropped.amin(dim=(1, 2, 3))
    assert 70 < float(spans.min()) < float(spans.max()) <= 198
    assert (spans < 190).sum() > 4


@pytest.mark.parametrize("settings", [{"brightness": 0.5}, {"contrast": 0.5}, {"saturation": 0.5}])
def test_colours_change_image_by_image_within_the_range(settings: dict[str, Any]) -> None:
    """Each image differs, and pixels stay within 0..255."""
    images = photographs()
    results = changed(images, **settings)
    assert all(not torch.equal(a.float(), b) for a, b in zip(images, results, strict=True))
    assert 0 <= float(results.min()) <= float(results.max()) <= 255


def test_brightness_multiplies() -> None:
    """Each image is scaled by one factor between 0.8 and 1.2."""
    images = torch.full((20, 4, 4, 3), 100, dtype=torch.uint8)
    results = changed(images, brightness=0.2)
    factors = results[:, 0, 0, 0] / 100
    assert torch.equal(results, results[:, :1, :1, :1].expand_as(results))
    assert 0.8 <= float(factors.min()) < 0.9
    assert 1.1 < float(factors.max()) <= 1.2


def test_blur_spreads_each_image_by_a_gaussian_of_its_own() -> None:
    """A dot keeps its sum and position; its variance is that of the drawn Gaussian."""
    images = torch.zeros((30, 41, 31, 3), dtype=torch.uint8)
    images[:, 20, 15] = 200
    blurred = changed(images, max_blur_px=2.0)
    assert torch.allclose(blurred.sum(dim=(1, 2)), torch.full((30, 3), 200.0), atol=0.1)
    rows, columns = blurred[..., 0].sum(dim=2) / 200, blurred[..., 0].sum(dim=1) / 200
    expected = (draw_uniforms(30, seed=0, epoch=0, step=0)[:, Column.BLUR] * 2) ** 2
    for profile, middle in ((rows, 20), (columns, 15)):
        variance = (profile * (torch.arange(profile.shape[1]) - middle) ** 2).sum(dim=1)
        assert torch.allclose(variance[expected > 0.5], expected[expected > 0.5], rtol=0.02)
        assert variance[expected < 0.02].max() < 0.02


def test_blur_keeps_an_even_image_to_its_edges() -> None:
    """The blur does not darken the edges."""
    even = torch.full((4, 9, 7, 1), 90, dtype=torch.uint8)
    assert torch.allclose(changed(even, max_blur_px=5.0), even.float(), atol=1e-3)


class Products(TorchDispatchMode):
    """Records the dtypes of matrix products, and whether TF32 was allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, bool]] = set()

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if function.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.affine_grid_generator):
            tf32 = torch.backends.cuda.matmul.allow_tf32
            self.seen |= {(each.dtype, tf32) for each in args if isinstance(each, Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [{"max_rotation_degrees": 20}, {"min_crop_area": 0.3}, {"max_blur_px": 3}, {"trivial": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_products_of_the_augmentation_are_full_fp32(settings: dict[str, Any]) -> None:
    """With TF32 and bfloat16 enabled the images are the same to the bit, and TF32 stays unused."""
    images, before = photographs(count=16), torch.backends.cuda.matmul.allow_tf32
    expected = changed(images, **settings)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16), Products() as products:
            result = changed(images, **settings)
        assert torch.backends.cuda.matmul.allow_tf32, "the network's own products may use it again"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(result, expected)
    assert products.seen == {(torch.float32, False)}


def test_erasing_covers_one_rectangle_of_the_stated_area() -> None:
    """About half of the images lose a grey rectangle of 2 to 20 per cent."""
    images = torch.zeros((200, 40, 40, 1), dtype=torch.uint8)
    results = changed(images, erasing=0.5, max_erased_area=0.2)
    areas = (results > 0).float().mean(dim=(1, 2, 3))
    erased = areas[areas > 0]
    assert 70 < len(erased) < 130
    assert 0.01 < float(erased.min()) < float(erased.max()) < 0.23


def test_a_part_of_a_batch_is_changed_as_in_the_whole() -> None:
    """Rows are independent, so processes can augment their parts of a batch."""
    images = photographs(count=8)
    settings = AugmentationRecipe(
        max_shift_px=2,
        max_rotation_degrees=20,
        max_zoom=0.2,
        flip="random",
        max_blur_px=2,
        contrast=0.3,
        erasing=0.5,
    )
    numbers = draw_uniforms(8, seed=0, epoch=0, step=0)
    coins = torch.zeros(8, dtype=torch.int64)
    whole = augment(images, numbers, settings, background=0, epoch=0, coins=coins)
    part = augment(images[5:], numbers[5:], settings, background=0, epoch=0, coins=coins[5:])
    assert torch.equal(whole[5:], part)
