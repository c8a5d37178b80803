"""What is decoded at once, what in a worker thread, and that both give the same."""

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image as PilImage

from serving.bundle import Geometry, ImageLimits
from serving.bundle.images import Pixels
from serving.classify import preprocessing as preparation
from serving.classify.preprocessing import Image, Preparation
from serving.errors import EmptyImage, ImageError, ImageTooLarge, UndecodableImage

GREY = Geometry(height=28, width=28, channels=1)
LARGE = Geometry(height=224, width=224, channels=3)


def _png(side: int) -> bytes:
    rng = np.random.default_rng(side)
    buffer = io.BytesIO()
    PilImage.fromarray(rng.integers(0, 255, (side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads in which images were decoded, in order."""
    names: list[str] = []
    decode = preparation.decode_image

    def noted(encoded: bytes, limits: ImageLimits) -> Pixels:
        pixels = decode(encoded, limits)
        names.append(threading.current_thread().name.partition("_")[0])
        return pixels

    monkeypatch.setattr(preparation, "decode_image", noted)
    return names


@pytest.fixture
def prepared_by() -> Iterator[Preparation]:
    """Two threads and the limits of a server's default."""
    made = Preparation(ImageLimits(), 2)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("images", "geometry", "thread"),
    [
        ([_png(28)], GREY, "MainThread"),
        ([_png(28)] * 8, GREY, "MainThread"),
        ([_png(28)] * 9, GREY, "decode"),  # together they would hold the loop up
        ([_png(60)], GREY, "MainThread"),
        ([_png(65)], GREY, "decode"),  # more pixels than are small
        ([_png(28)], LARGE, "decode"),  # enlarging is work too
    ],
)
async def test_small_images_in_small_number_are_decoded_at_once(
    prepared_by: Preparation, threads: list[str], images: list[bytes], geometry: Geometry, thread: str
) -> None:
    """The rest goes to the worker threads; either way every image has the geometry's shape."""
    prepared = await prepared_by.prepare(images, geometry)
    assert threads == [thread] * len(images)
    assert [np.shape(each.pixels) for each in prepared] == [geometry.shape] * len(images)
    assert all(each.duration_s > 0 for each in prepared)


async def test_both_ways_give_the_same_pixels(prepared_by: Preparation) -> None:
    """Where an image is decoded shows nowhere in its pixels."""
    here = (await prepared_by.prepare([_png(40)], GREY))[0].pixels
    there = (await prepared_by.prepare([_png(40)] * 9, GREY))[0].pixels
    assert np.array_equal(here, there)


@pytest.mark.parametrize("count", [1, 9])
async def test_errors_are_results_in_their_places(prepared_by: Preparation, count: int) -> None:
    """A bad image says what it is, wherever it is decoded, and its neighbours do not notice."""
    given: list[Image] = [b"no image", _png(28), b"", ImageError("from the wire")] * count
    kinds = [type(each.pixels) for each in await prepared_by.prepare(given, GREY)]
    assert kinds == [UndecodableImage, np.ndarray, EmptyImage, ImageError] * count


async def test_the_operators_limits_hold_for_small_images_too() -> None:
    """What is small for the loop may be too large for the operator."""
    strict = Preparation(ImageLimits(max_pixels=100), 1)
    with pytest.raises(ImageTooLarge, match="100"):
        raise (await strict.prepare([_png(28)], GREY))[0].pixels  # type: ignore[misc]
    strict.close()


async def test_pixels_in_their_geometry_take_no_thread(prepared_by: Preparation) -> None:
    """They are handed through."""
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28, 1)
    (prepared,) = await prepared_by.prepare([pixels], GREY)
    assert prepared.pixels is pixels
