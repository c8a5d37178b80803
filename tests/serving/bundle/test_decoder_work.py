"""Images whose decoders would do much for few bytes are refused before that; their metadata too."""

import tracemalloc

import numpy as np
import pytest

from serving.bundle import ImageLimits, decode_image
from serving.bundle.images import MAX_SCANS
from serving.errors import ImageTooLarge
from tests.hostile_images import (
    HOSTILE,
    MIB,
    bmp_of_lines,
    gif_of_comments,
    jpeg_of_scans,
    jpeg_of_segments,
    png_of_chunks,
    png_of_fractions,
    ppm_of_odd_samples,
    tiff_of_strips,
    tiff_of_tile,
)

# Limits on work, so that tests need less of it.
FEW_PARTS = ImageLimits(max_parts=1000)


@pytest.mark.parametrize("name", HOSTILE)
def test_an_image_of_much_work_is_refused(name: str) -> None:
    """Some took minutes or gigabytes, at 16 MiB."""
    limits = FEW_PARTS if name in {"png chunks", "gif comments"} else ImageLimits()
    encoded = HOSTILE[name]()
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match="limit"):
            decode_image(encoded, limits)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(encoded) + 4 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "encoded",
    [
        png_of_chunks(1200),
        jpeg_of_segments(400),
        jpeg_of_scans(MAX_SCANS - 2, side=64),
        gif_of_comments(500),
        tiff_of_tile(1024),
        tiff_of_strips(800),
        bmp_of_lines(600, 400),
        ppm_of_odd_samples(64),
    ],
    ids=["chunks", "segments", "scans", "comments", "tile", "strips", "lines", "samples"],
)
def test_an_image_of_the_same_kind_within_the_limits_is_decoded(encoded: bytes) -> None:
    """It is the amount that is refused, not the feature."""
    assert decode_image(encoded, ImageLimits()).dtype == np.uint8


def test_hostile_metadata_neither_rejects_good_pixels_nor_costs_memory() -> None:
    """An orientation of a million fractions took 300 MB."""
    encoded = png_of_fractions(4 * MIB)
    tracemalloc.start()
    try:
        assert decode_image(encoded, ImageLimits()).shape == (64, 64, 3)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(encoded)
    finally:
        tracemalloc.stop()
