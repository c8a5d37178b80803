"""Geometry: any pixels are converted to the network's input exactly as the manifest says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.bundle import Geometry, apply_geometry
from serving.bundle.geometry import crop_and_size
from serving.bundle.images import Pixels

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

sides = st.integers(1, 60)
geometries = st.builds(
    Geometry,
    height=sides,
    width=sides,
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["stretch", "crop", "pad"]),
    crop_fraction=st.sampled_from([1.0, 0.875, 0.5, 0.01]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    background=st.integers(0, 255),
)


@st.composite
def pictures(draw: st.DrawFn, channels: tuple[int, ...] = (1, 2, 3, 4)) -> Pixels:
    """Noise of any size."""
    shape = draw(sides), draw(sides), draw(st.sampled_from(channels))
    return np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, np.uint8)  # (H, W, C)


def noise(*shape: int) -> Pixels:
    """The same noise for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@settings(deadline=None, max_examples=300)
@given(pixels=pictures(), geometry=geometries)
def test_output_has_the_shape_of_the_geometry(pixels: Pixels, geometry: Geometry) -> None:
    """For any size, channels and geometry, shape and dtype are right and the source is not changed."""
    before = pixels.copy()
    fitted = apply_geometry(pixels, geometry)
    assert fitted.shape == (geometry.height, geometry.width, geometry.channels)
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(apply_geometry(pixels, geometry), fitted)  # and again


@pytest.mark.parametrize(("size", "part"), [((25, 1), (44, 1)), ((1, 25), (1, 44))])
def test_rounding_never_leaves_the_image(size: tuple[int, int], part: tuple[int, int]) -> None:
    """25 / 44 * 44 exceeds 25 in floating point, and Pillow rejects a box that begins at -1e-15."""
    geometry = Geometry(height=part[1], width=part[0], channels=1, fit="crop")
    fitted = apply_geometry(np.zeros((size[1], size[0], 1), np.uint8), geometry)
    assert fitted.shape == (part[1], part[0], 1)


@settings(deadline=None, max_examples=200)
@given(
    geometry=geometries,
    height=sides,
    width=sides,
    value=st.integers(0, 255),
    channels=st.sampled_from([1, 3]),
)
def test_a_constant_image_stays_constant(
    geometry: Geometry, height: int, width: int, value: int, channels: int
) -> None:
    """Without padding, resampling invents no value."""
    geometry = geometry.model_copy(update={"fit": "crop" if geometry.fit == "pad" else geometry.fit})
    pixels = np.full((height, width, channels), value, np.uint8)  # (H, W, C)
    assert (apply_geometry(pixels, geometry) == value).all()


@settings(deadline=None, max_examples=200)
@given(geometry=geometries, height=sides, width=sides)
def test_padding_adds_background_and_nothing_else(geometry: Geometry, height: int, width: int) -> None:
    """A black image on white is a full black rectangle, centred to a pixel, touching two opposite sides."""
    geometry = geometry.model_copy(update={"fit": "pad", "background": 255})
    black = apply_geometry(np.zeros((height, width, 3), np.uint8), geometry)[:, :, 0] == 0  # (H, W)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    top, bottom = rows[0], geometry.height - 1 - rows[-1]
    left, right = columns[0], geometry.width - 1 - columns[-1]
    assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert bottom - top in (0, 1)
    assert right - left in (0, 1)
    assert (top, bottom) == (0, 0) or (left, right) == (0, 0)


@settings(deadline=None, max_examples=200)
@given(geometry=geometries, height=sides, width=sides)
def test_a_crop_is_the_largest_centred_part_of_the_right_shape(
    geometry: Geometry, height: int, width: int
) -> None:
    """The box is inside the image, has the geometry's aspect ratio, is centred, and cannot grow."""
    geometry = geometry.model_copy(update={"fit": "crop", "crop_fraction": 1.0})
    (left, top, right, bottom), size = crop_and_size((width, height), geometry)
    assert size == (geometry.width, geometry.height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (left + right) / 2 == pytest.approx(width / 2)
    assert (top + bottom) / 2 == pytest.approx(height / 2)
    assert (right - left) * geometry.height == pytest.approx((bottom - top) * geometry.width)
    largest = max((right - left) / width, (bottom - top) / height)
    assert largest == pytest.approx(1)


@settings(deadline=None, max_examples=200)
@given(geometry=geometries, height=sides, width=sides, fraction=st.sampled_from([0.875, 0.5, 0.01]))
def test_a_smaller_crop_is_centred_within_a_pixel_of_the_result(
    geometry: Geometry, height: int, width: int, fraction: float
) -> None:
    """The box is inside the image, at most half a pixel of the result off its centre."""
    geometry = geometry.model_copy(update={"fit": "crop", "crop_fraction": fraction})
    (left, top, right, bottom), size = crop_and_size((width, height), geometry)
    assert size == (geometry.width, geometry.height)
    scale = min(width / geometry.width, height / geometry.height) * fraction
    for low, high, side, wanted in ((left, right, width, size[0]), (top, bottom, height, size[1])):
        assert 0 <= low < high <= side
        resized = max(wanted, int(side / scale + 1e-6))
        assert high - low == pytest.approx(wanted * side / resized)
        assert abs((low + high) / 2 - side / 2) <= 0.5 * side / resized + 1e-6


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 300), (263, 376), (100, 90)])
def test_crop_of_224_in_256_is_that_of_resizing_first(height: int, width: int) -> None:
    """As torchvision prepares ImageNet: resize the shorter side to 256, cut out the middle 224."""
    pixels = noise(height, width, 3)
    geometry = Geometry(height=224, width=224, channels=3, fit="crop", crop_fraction=0.875)
    shorter = min(height, width)
    whole = int(256 * width / shorter), int(256 * height / shorter)
    left, top = round((whole[0] - 224) / 2), round((whole[1] - 224) / 2)
    reference = np.asarray(Image.fromarray(pixels).resize(whole, Image.Resampling.BILINEAR))
    reference = reference[top : top + 224, left : left + 224]  # (224, 224, 3)
    assert np.abs(apply_geometry(pixels, geometry).astype(int) - reference).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_an_image_of_the_right_size_is_unchanged(fit: str, channels: int) -> None:
    """Digits of 28 x 28 reach the network bit for bit."""
    pixels = noise(28, 20, channels)
    geometry = Geometry.model_validate({"height": 28, "width": 20, "channels": channels, "fit": fit})
    np.testing.assert_array_equal(apply_geometry(pixels, geometry), pixels)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(("height", "width"), [(40, 60), (5, 3), (9, 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_stretch_is_the_resize_of_pillow(channels: int, height: int, width: int, interpolation: str) -> None:
    """Antialiased when shrinking: nearest exactly, bilinear within a level, cubic except for clipping."""
    pixels = noise(height, width, channels)
    geometry = Geometry.model_validate(
        {"height": 14, "width": 17, "channels": channels, "interpolation": interpolation}
    )
    image = Image.fromarray(pixels.squeeze(axis=2) if channels == 1 else pixels)
    reference = np.asarray(image.resize((17, 14), RESAMPLING[interpolation])).reshape(14, 17, channels)
    difference = np.abs(apply_geometry(pixels, geometry).astype(int) - reference)
    assert difference.max() <= {"nearest": 0, "bilinear": 1, "bicubic": 30}[interpolation]
    assert difference.mean() < {"nearest": 0.1, "bilinear": 0.3, "bicubic": 1}[interpolation]


def test_shrinking_is_antialiased() -> None:
    """A fine checkerboard becomes grey, not black or white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, np.newaxis]  # (H, W, 1)
    shrunk = apply_geometry(board, Geometry(height=8, width=8, channels=1))
    assert np.abs(shrunk.astype(int) - 127).max() <= 12


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((4, 8), (0, 4), (2, 6)), ((10, 4), (3, 7), (0, 4)), ((4, 4), (0, 4), (0, 4))],
)
def test_crop_takes_the_middle(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """If the middle needs no resizing, it is returned exactly."""
    pixels = noise(*shape, 3)
    cropped = apply_geometry(pixels, Geometry(height=4, width=4, channels=3, fit="crop"))
    np.testing.assert_array_equal(cropped, pixels[slice(*rows), slice(*columns)])


def test_crop_fraction_keeps_less_of_each_side() -> None:
    """With 224/256, a 256 x 256 picture gives its middle 224 x 224 unresized."""
    pixels = noise(256, 256, 3)
    geometry = Geometry(height=224, width=224, channels=3, fit="crop", crop_fraction=224 / 256)
    np.testing.assert_array_equal(apply_geometry(pixels, geometry), pixels[16:240, 16:240])


def test_crop_fraction_applies_to_images_of_the_right_size() -> None:
    """An image of the network's size is cropped like all others."""
    geometry = Geometry(height=8, width=8, channels=1, fit="crop", crop_fraction=0.5, interpolation="nearest")
    pixels = noise(8, 8, 1)
    np.testing.assert_array_equal(
        apply_geometry(pixels, geometry), pixels[2:6, 2:6].repeat(2, axis=0).repeat(2, axis=1)
    )


def test_pad_keeps_the_whole_image_in_the_middle() -> None:
    """A wide image gets bars above and below, and all of it is resized between them."""
    pixels = noise(10, 40, 3)
    padded = apply_geometry(pixels, Geometry(height=20, width=20, channels=3, fit="pad", background=77))
    reference = np.asarray(Image.fromarray(pixels).resize((20, 5), Image.Resampling.BILINEAR))
    assert np.abs(padded[7:12].astype(int) - reference).max() <= 1
    assert (padded[:7] == 77).all()
    assert (padded[12:] == 77).all()


def test_pad_grows_small_images() -> None:
    """The image fills the input as far as the aspect ratio allows."""
    padded = apply_geometry(
        np.zeros((2, 1, 1), np.uint8), Geometry(height=28, width=28, channels=1, fit="pad")
    )
    assert (padded[:, 7:21] == 0).all()
    assert (padded[:, :7] == 255).all()
    assert (padded[:, 21:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("background", [0, 77, 255])
@pytest.mark.parametrize("alpha_channels", [2, 4])
def test_transparent_pixels_show_the_background(alpha_channels: int, background: int, channels: int) -> None:
    """Alpha 0 shows the background whatever the hidden colour, 255 the pixel, 128 the mean of both."""
    pixels = np.full((1, 3, alpha_channels), 200, np.uint8)  # (H, W, C)
    pixels[0, :, -1] = [0, 128, 255]
    geometry = Geometry.model_validate(
        {"height": 1, "width": 3, "channels": channels, "background": background}
    )
    shown = apply_geometry(pixels, geometry).astype(int)
    assert (shown[0, 0] == background).all()
    assert np.abs(shown[0, 1] - (200 * 128 + background * 127) / 255).max() <= 1
    assert (shown[0, 2] == 200).all()


def test_hidden_colours_do_not_bleed_when_resized() -> None:
    """Transparency is removed before resizing, not after."""
    pixels = np.zeros((8, 8, 4), np.uint8)  # black, all transparent
    assert (apply_geometry(pixels, Geometry(height=3, width=3, channels=3)) == 255).all()


def test_grey_is_itu_r_601_luma() -> None:
    """0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601)."""
    pixels = noise(30, 30, 3)
    grey = apply_geometry(pixels, Geometry(height=30, width=30, channels=1))
    luma = pixels @ np.array([0.299, 0.587, 0.114])  # (H, W)
    assert np.abs(grey[:, :, 0] - luma).max() <= 0.51


def test_colour_after_size_is_colour_before_size() -> None:
    """The luma of the resized image is within two roundings of the resized luma."""
    pixels = noise(60, 80, 3)
    geometry = Geometry(height=20, width=30, channels=1)
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((30, 20), Image.Resampling.BILINEAR))
    assert np.abs(apply_geometry(pixels, geometry)[:, :, 0].astype(int) - grey).max() <= 2


def test_grey_becomes_three_equal_channels() -> None:
    """A grey image has equal channels for an RGB network."""
    pixels = noise(9, 9, 1)
    np.testing.assert_array_equal(
        apply_geometry(pixels, Geometry(height=9, width=9, channels=3)), pixels.repeat(3, axis=2)
    )


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(1, 65_535), (65_535, 1)])
def test_the_thinnest_images_fit_too(height: int, width: int, fit: str) -> None:
    """One pixel by the longest allowed side passes every geometry, even with a thin crop."""
    pixels = np.full((height, width, 1), 255, np.uint8)
    for side in (1, 28, 299):
        geometry = Geometry.model_validate({"height": side, "width": 28, "channels": 1, "fit": fit})
        assert (apply_geometry(pixels, geometry) == 255).all()
    sliver = Geometry.model_validate({"height": 1, "width": 4096, "channels": 1, "fit": fit})
    assert (apply_geometry(pixels, sliver) == 255).all()


def test_views_of_larger_arrays_are_read_as_they_look() -> None:
    """Strides do not matter: a flipped view is flipped."""
    pixels = noise(9, 7, 3)
    geometry = Geometry(height=5, width=5, channels=3)
    np.testing.assert_array_equal(
        apply_geometry(pixels[::-1, ::-1], geometry),
        apply_geometry(np.ascontiguousarray(pixels[::-1, ::-1]), geometry),
    )


def test_a_large_transparent_image_is_blended_as_small_ones_are() -> None:
    """In strips: a step of the sum takes ten times the memory of the pixels."""
    pixels = noise(1100, 1000, 4)
    geometry = Geometry(height=1100, width=1000, channels=3, background=40)
    strips = [
        apply_geometry(pixels[top : top + 100], geometry.model_copy(update={"height": 100}))
        for top in range(0, 1100, 100)
    ]
    np.testing.assert_array_equal(apply_geometry(pixels, geometry), np.concatenate(strips))
