"""Which images are decoded on the event loop and which in a thread, with the same result."""

import asyncio
import io
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image as PilImage

from serving.bundle import Geometry, ImageLimits, decode_image
from serving.bundle.images import Pixels
from serving.classify import preprocessing
from serving.classify.preprocessing import Image, Preprocessed, Preprocessor
from serving.errors import (
    DeadlineExceeded,
    EmptyImage,
    ImageError,
    ImageTooLarge,
    OutOfMemory,
    UndecodableImage,
)
from tests.hostile_images import jpeg_of_segments, png_of_chunks, png_of_texts, tiff_of_tile
from tests.serving.until import until

GREY = Geometry(height=28, width=28, channels=1)
LARGE = Geometry(height=224, width=224, channels=3)


def _png(side: int) -> bytes:
    rng = np.random.default_rng(side)
    buffer = io.BytesIO()
    PilImage.fromarray(rng.integers(0, 255, (side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(preprocessed: Preprocessed) -> Pixels:
    assert not isinstance(preprocessed.pixels, ImageError)
    return preprocessed.pixels


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads in which images were decoded, in order."""
    names: list[str] = []
    decode = decode_image

    def noted(encoded: bytes, limits: ImageLimits) -> Pixels:
        pixels = decode(encoded, limits)
        names.append(threading.current_thread().name.partition("_")[0])
        return pixels

    monkeypatch.setattr(preprocessing, "decode_image", noted)
    return names


@pytest.fixture
def preprocessor() -> Iterator[Preprocessor]:
    """Two threads and a server's default limits."""
    made = Preprocessor(ImageLimits(), 2)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("images", "geometry", "thread"),
    [
        ([_png(28)], GREY, "MainThread"),
        ([_png(28)] * 8, GREY, "MainThread"),
        ([_png(28)] * 9, GREY, "decode"),  # together they would block the loop
        ([_png(60)], GREY, "MainThread"),
        ([_png(65)], GREY, "decode"),  # more pixels than the limit
        ([_png(28)], LARGE, "decode"),  # enlarging is work too
        ([png_of_texts(1)], GREY, "decode"),  # a kilobyte that inflates to a megabyte
        ([png_of_chunks(1200)], GREY, "decode"),
        ([jpeg_of_segments(400)], GREY, "decode"),
        ([tiff_of_tile(80)], GREY, "decode"),  # 80 x 80 pixels are decoded, although the image has 64 x 64
    ],
)
async def test_a_few_small_images_are_decoded_on_the_event_loop(
    preprocessor: Preprocessor, threads: list[str], images: list[bytes], geometry: Geometry, thread: str
) -> None:
    """All others go to worker threads; either way they get the shape of the geometry."""
    preprocessed = await preprocessor.preprocess(images, geometry)
    assert threads == [thread] * len(images)
    assert [_pixels(each).shape for each in preprocessed] == [geometry.shape] * len(images)
    assert all(each.duration_s > 0 for each in preprocessed)


async def test_both_ways_give_the_same_pixels(preprocessor: Preprocessor) -> None:
    """An image has the same pixels wherever it is decoded."""
    here = (await preprocessor.preprocess([_png(40)], GREY))[0]
    there = (await preprocessor.preprocess([_png(40)] * 9, GREY))[0]
    assert np.array_equal(_pixels(here), _pixels(there))


@pytest.mark.parametrize("count", [1, 9])
async def test_errors_are_results_in_their_places(preprocessor: Preprocessor, count: int) -> None:
    """Each invalid image gives its own error, wherever it is decoded, and the others are decoded."""
    given: list[Image] = [b"no image", _png(28), b"", ImageError("from the wire")] * count
    kinds = [type(each.pixels) for each in await preprocessor.preprocess(given, GREY)]
    assert kinds == [UndecodableImage, np.ndarray, EmptyImage, ImageError] * count


async def test_the_operators_limits_hold_for_small_images_too() -> None:
    """An image that is small for the event loop may exceed the operator's limit."""
    strict = Preprocessor(ImageLimits(max_pixels=100), 1)
    with pytest.raises(ImageTooLarge, match="100"):
        raise (await strict.preprocess([_png(28)], GREY))[0].pixels  # type: ignore[misc]
    strict.close()


async def test_pixels_in_their_geometry_take_no_thread(preprocessor: Preprocessor) -> None:
    """They are returned unchanged."""
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28, 1)
    (preprocessed,) = await preprocessor.preprocess([pixels], GREY)
    assert preprocessed.pixels is pixels


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[bytes]]]:
    """A gate before the decoder, and the images that have arrived at it."""
    gate, arrived = threading.Event(), []
    decode = decode_image

    def wait_and_decode(encoded: bytes, limits: ImageLimits) -> Pixels:
        arrived.append(encoded)
        assert gate.wait(timeout=30)
        return decode(encoded, limits)

    monkeypatch.setattr(preprocessing, "decode_image", wait_and_decode)
    yield gate, arrived
    gate.set()


async def test_images_that_wait_for_a_thread_are_freed_when_their_call_ends(
    held_up: tuple[threading.Event, list[bytes]],
) -> None:
    """At once, and not when a thread is free; nobody decodes them, and what is decoded is not resized."""
    gate, arrived = held_up
    resized: list[object] = []
    preprocessor = Preprocessor(ImageLimits(), 1)
    pixels = np.zeros((500, 500, 3), np.uint8)
    running = asyncio.create_task(preprocessor.preprocess([_png(300)], LARGE))
    await until(lambda: len(arrived) == 1)
    waiting = asyncio.create_task(preprocessor.preprocess([pixels, _png(301)], LARGE))
    await asyncio.sleep(0)  # it starts
    freed = weakref.ref(pixels)
    del pixels

    for task in (waiting, running):
        task.cancel()
        await asyncio.wait([task])
    del task, waiting, running
    assert freed() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessing, "apply_geometry", lambda *given: resized.append(given))
        gate.set()
        preprocessor.close()
        await asyncio.to_thread(preprocessor._threads.shutdown)

    assert len(arrived) == 1
    assert not resized


async def test_images_whose_deadline_passes_before_a_thread_is_free_are_not_decoded(
    held_up: tuple[threading.Event, list[bytes]],
) -> None:
    """A request parameter can set an earlier deadline than the call's, which nothing else enforces here."""
    gate, arrived = held_up
    preprocessor = Preprocessor(ImageLimits(), 1)
    running = asyncio.create_task(preprocessor.preprocess([_png(300)], LARGE))
    await until(lambda: len(arrived) == 1)
    late = asyncio.create_task(preprocessor.preprocess([_png(301)], LARGE, deadline_s=time.monotonic()))
    await asyncio.sleep(0)
    gate.set()

    with pytest.raises(DeadlineExceeded):
        await late
    await running
    preprocessor.close()
    assert len(arrived) == 1


async def test_memory_that_runs_out_is_not_the_images_fault(
    preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here or in a thread: the client may try again."""

    def fail(_encoded: bytes, _limits: ImageLimits) -> Pixels:
        raise MemoryError

    monkeypatch.setattr(preprocessing, "decode_image", fail)
    for side in (28, 100):
        with pytest.raises(OutOfMemory, match="the server has too little memory to decode an image"):
            await preprocessor.preprocess([_png(side)], GREY)
