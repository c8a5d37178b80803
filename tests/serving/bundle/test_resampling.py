"""Resampling: equal to Pillow with either implementation, also from many threads at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from serving.bundle import resampling
from serving.bundle.resampling import Box, Pixels, resize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PHOTOGRAPHS = load_sample_images().images  # two of (427, 640, 3) uint8

sides = st.integers(1, 70)


def pillow(pixels: Pixels, size: tuple[int, int], box: Box, interpolation: str) -> Pixels:
    """The reference: (size[1], size[0], C) uint8."""
    image = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.resize(size, FILTERS[interpolation], box=box)).reshape(*size[::-1], -1)


def pillow_across_then_down(pixels: Pixels, size: tuple[int, int], box: Box, interpolation: str) -> Pixels:
    """The reference in a fixed order: Pillow 13 shrinks vertically first where that is cheaper."""
    height, (left, top, right, bottom) = pixels.shape[0], box
    across = pillow(pixels, (size[0], height), (left, 0, right, height), interpolation)  # (H, size[0], C)
    return pillow(across, size, (0, top, size[0], bottom), interpolation)


def difference(ours: Pixels, reference: Pixels) -> np.ndarray:
    """The absolute difference of each sample."""
    assert ours.shape == reference.shape
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - reference)


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> Box:
    """Any part of an image, down to a hundredth of a side."""
    shares = st.integers(0, 100).map(lambda percent: percent / 100)
    left, right = sorted(draw(st.lists(shares, min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(shares, min_size=2, max_size=2, unique=True)))
    return left * width, top * height, right * width, bottom * height


@settings(deadline=None, max_examples=300)
@given(
    data=st.data(),
    shape=st.tuples(sides, sides, st.sampled_from([1, 3])),
    size=st.tuples(sides, sides),
    interpolation=st.sampled_from(sorted(FILTERS)),
    hard=st.booleans(),
)
def test_any_box_of_any_size_equals_pillow_within_rounding(
    data: st.DataObject, shape: tuple[int, int, int], size: tuple[int, int], interpolation: str, *, hard: bool
) -> None:
    """One level for each of two roundings, on noise and on black and white; cubic weights amplify it."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if hard:
        pixels = (pixels > 127).astype(np.uint8) * np.uint8(255)
    box = data.draw(boxes(shape[1], shape[0]))
    ours = resize(pixels, size, box=box, interpolation=interpolation)
    reference = pillow_across_then_down(pixels, size, box, interpolation)
    assert difference(ours, reference).max() <= (2 if interpolation == "bilinear" else 3)
    if interpolation == "bilinear":
        assert difference(ours, pillow(pixels, size, box, interpolation)).max() <= 3


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("size", [(224, 224), (96, 96), (28, 28), (299, 299), (1000, 700)])
@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1), ("bicubic", 3)])
def test_photographs_equal_pillow(
    photograph: Pixels, size: tuple[int, int], interpolation: str, most: int
) -> None:
    """Fewer than 2 % of the samples differ, by one level; with cubic filters rarely by more."""
    box = (10.3, 20.7, 600.1, 401.9)
    ours = resize(photograph, size, box=box, interpolation=interpolation)
    found = difference(ours, pillow(photograph, size, box, interpolation))
    assert found.max() <= most
    assert found.mean() < 0.02


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_without_the_simd_package_pillow_resizes(interpolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is the same within one level."""
    box = (10.3, 20.7, 600.1, 401.9)
    fast = resize(PHOTOGRAPHS[0], (64, 48), box=box, interpolation=interpolation)
    monkeypatch.setattr(resampling, "FAST", False)
    slow = resize(PHOTOGRAPHS[0], (64, 48), box=box, interpolation=interpolation)
    assert slow.shape == fast.shape == (48, 64, 3)
    assert difference(fast, slow).max() <= {"nearest": 0, "bilinear": 1, "bicubic": 10}[interpolation]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_box_of_the_right_size_is_returned_as_a_view(interpolation: str) -> None:
    """Whole pixels that need no resizing are not copied."""
    part = resize(PHOTOGRAPHS[0], (30, 20), box=(5, 7, 35, 27), interpolation=interpolation)
    np.testing.assert_array_equal(part, PHOTOGRAPHS[0][7:27, 5:35])
    assert np.shares_memory(part, PHOTOGRAPHS[0])


def test_threads_do_not_disturb_each_other() -> None:
    """Four threads resize sixty images to different sizes, with the results of a single thread."""
    jobs = [(PHOTOGRAPHS[number % 2][number:], (30 + number, 90 - number)) for number in range(60)]

    def one(job: tuple[Pixels, tuple[int, int]]) -> Pixels:
        pixels, size = job
        height, width, _ = pixels.shape
        return resize(pixels, size, box=(0, 0, width, height), interpolation="bilinear")

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, jobs))
    for job, result in zip(jobs, together, strict=True):
        np.testing.assert_array_equal(result, one(job))


def test_resizing_releases_the_interpreter_lock() -> None:
    """Another thread keeps running during most of a long resize."""
    wide = np.zeros((3000, 4000, 3), np.uint8)
    ticks = [time.perf_counter()]
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())

    ticking = threading.Thread(target=tick)
    ticking.start()
    started = time.perf_counter()
    resize(wide, (3999, 2999), box=(0, 0, 4000, 3000), interpolation="bicubic")
    elapsed = time.perf_counter() - started
    done.set()
    ticking.join()
    blocked = max(later - earlier for earlier, later in pairwise(ticks))
    assert blocked < elapsed / 2
