"""Images that are small, by bytes or pixels, and much work for a decoder."""

from tests.chaos.attack import MIB, Target, attack
from tests.chaos.bodies import calls, field, model
from tests.chaos.http2 import CLASSIFY, framed
from tests.hostile_images import (
    bmp_of_lines,
    gif_of_comments,
    jpeg_of_exif,
    jpeg_of_scans,
    jpeg_of_segments,
    png_of_chunks,
    png_of_fractions,
    png_of_texts,
    ppm_of_comments,
    ppm_of_odd_samples,
    tiff_of_fractions,
    tiff_of_strips,
    tiff_of_tile,
)


def _classify(target: Target, *images: bytes) -> None:
    """Make the same call of CLASSIFY, with encoded images, again and again."""
    calls(target, CLASSIFY, framed(model(target) + b"".join(field(4, field(1, each)) for each in images)))


def _quarter(target: Target) -> int:
    """The size of each of four images in the largest message."""
    return (target.message_bytes - MIB) // 4


@attack(
    "image-tiles",
    does="sends eight TIFF images of 64x64 pixels a call, each in one tile of 20,000x20,000",
    stands_for="CWE-789, allocation by a claimed size",
)
def image_tiles(target: Target) -> None:
    """A kilobyte each: small enough for the event loop."""
    _classify(target, *[tiff_of_tile(20_000)] * 8)


@attack(
    "image-scans",
    does="sends baseline JPEG images of 49 megapixels with 2,000 scans",
    stands_for="CWE-400, work of a decoder",
)
def image_scans(target: Target) -> None:
    """20 KB; each scan passes over all pixels."""
    _classify(target, jpeg_of_scans(2000))


@attack(
    "image-parts",
    does="sends JPEG, GIF and PNG images of millions of empty segments, comments and chunks",
    stands_for="CWE-770, element bomb in images",
)
def image_parts(target: Target) -> None:
    """Four images in the largest message."""
    size = _quarter(target)
    makers = (jpeg_of_segments, jpeg_of_exif, gif_of_comments, png_of_chunks)
    _classify(target, *[make(size) for make in makers])


@attack(
    "image-numbers",
    does="sends TIFF and PNG images whose directories have millions of numbers",
    stands_for="CWE-770, element bomb in images",
)
def image_numbers(target: Target) -> None:
    """Strips of one byte, a resolution and an orientation of fractions."""
    size = _quarter(target)
    makers = (tiff_of_strips, tiff_of_fractions, png_of_fractions)
    _classify(target, *[make(size) for make in makers])


@attack(
    "image-lines",
    does="sends BMP and PPM images that a decoder in Python takes seconds for",
    stands_for="CWE-407, algorithmic complexity",
)
def image_lines(target: Target) -> None:
    """Ends of lines, comments, and samples of an odd maximum."""
    size = target.body_bytes // 4
    images = (bmp_of_lines(60_000, 800), ppm_of_comments(size), ppm_of_odd_samples(2000))
    _classify(target, *images)


@attack(
    "small-images",
    does="sends eight PNG images a call, each of 4 KB that inflate to three megabytes of texts",
    stands_for="CWE-409, data amplification",
)
def small_images(target: Target) -> None:
    """Small enough for the event loop."""
    _classify(target, *[png_of_texts(3)] * 8)


@attack(
    "large-messages",
    does="sends whole Classify requests of 35 MiB with four images that cannot be decoded",
    stands_for="CWE-400, copies of large messages",
)
def large_messages(target: Target) -> None:
    """Each is joined, parsed and copied, which no limit on incomplete messages sees."""
    _classify(target, *[b"x" * _quarter(target)] * 4)
