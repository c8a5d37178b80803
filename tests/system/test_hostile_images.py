"""Hostile and odd images against a server process: right answers or clear errors, and no growth."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from serving.pb.lenserve.v1 import classifier_pb2 as pb
from tests.colours import Publish
from tests.servers import ServerProcess, StartServer

CLASSIFY = "/lenserve.v1.Classifier/Classify"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
MAX_PIXELS = 4_000_000
MAX_BYTES = 200_000

# To lose one decoded picture a request, 64 x 64 RGB, would be 24 MB over 2,000 of them; one bomb that is
# decoded before it is refused, more than all of that. What allocators keep is 1 or 2.
REQUESTS = 2000
MAX_GROWTH_BYTES = 8 * 2**20


def _file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _plain(
    colour: float | tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (64, 64)
) -> Image.Image:
    return Image.new(mode, size, colour)


def _turned() -> bytes:
    """Stored turned: blue on the left, black on the right; upright, blue is above black."""
    image = _plain((0, 0, 0), size=(64, 32))
    image.paste(BLUE, (0, 0, 40, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    return _file(image, "JPEG", exif=exif, quality=95)


def _animated(form: str) -> bytes:
    frames = [_plain(GREEN), _plain(RED), _plain(BLUE)]
    return _file(frames[0], form, save_all=True, append_images=frames[1:], duration=50)


def _png_that_says(width: int, height: int) -> bytes:
    """A small PNG whose header claims far more pixels than any memory holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _flipped(encoded: bytes) -> bytes:
    """The same file with a run of bytes in its middle turned over."""
    middle = len(encoded) // 2
    return (
        encoded[:middle]
        + bytes(byte ^ 0xFF for byte in encoded[middle : middle + 40])
        + encoded[middle + 40 :]
    )


# What is an image, however odd, and the label of its strongest colour. Grey is a tie, which goes to `red`.
GOOD: dict[str, tuple[bytes, str]] = {
    "grey": (_file(_plain(200, "L")), "red"),
    "16-bit": (_file(Image.fromarray(np.full((64, 64), 50_000, np.uint16))), "red"),
    "bilevel": (_file(_plain(1, "1")), "red"),
    "CMYK": (_file(_plain((255, 0, 255, 0), "CMYK"), "JPEG"), "green"),
    "palette": (_file(_plain(BLUE).convert("P", palette=Image.Palette.ADAPTIVE)), "blue"),
    "alpha": (_file(_plain((0, 255, 0, 255), "RGBA")), "green"),
    "half transparent": (_file(_plain((255, 0, 0, 128), "RGBA")), "red"),
    "grey and alpha": (_file(_plain((9, 0), "LA")), "red"),
    "EXIF-rotated": (_turned(), "blue"),
    "animated GIF": (_animated("GIF"), "green"),
    "animated WebP": (_animated("WEBP"), "green"),
    "one pixel": (_file(_plain(BLUE, size=(1, 1))), "blue"),
    "very wide": (_file(_plain(RED, size=(30_000, 1))), "red"),
    "bytes behind the end": (_file(_plain(GREEN)) + bytes(1000), "green"),
}

# What is no image that a server should open, and what its sender is told, among other words.
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the image is empty: 0 bytes"),
    "truncated PNG": (_file(Image.effect_noise((64, 64), 80))[:-700], "the image cannot be decoded: "),
    "truncated JPEG": (
        _file(Image.effect_noise((64, 64), 80), "JPEG")[:-700],
        "the image cannot be decoded: ",
    ),
    "corrupt PNG": (_flipped(_file(Image.effect_noise((64, 64), 80))), "the image cannot be decoded: "),
    "corrupt GIF": (b"GIF89a" + bytes(range(200)), "the image cannot be decoded: "),
    "no image": (b"hello", "the image cannot be decoded: unknown image format (5 bytes)"),
    "a script": (b"%!PS-Adobe-3.0\n(/etc/passwd) run", "the image cannot be decoded: unknown image format"),
    "too many bytes": (
        bytes(MAX_BYTES + 1),
        f"the image has {MAX_BYTES + 1} bytes, the limit is {MAX_BYTES}",
    ),
    "bomb": (
        _file(_plain(0, "1", (8000, 8000))),
        "the image has 8000 x 8000 = 64000000 pixels, the limit is 4000000",
    ),
    "bomb beyond Pillow's own limit": (
        _png_that_says(60_000, 60_000),
        "(3600000000 pixels)",
    ),
    "lying header": (_png_that_says(1900, 1900), "the image cannot be decoded: "),
}


Classify = Callable[..., pb.ClassifyResponse]


@pytest.fixture
def server(publish: Publish, start_server: StartServer) -> ServerProcess:
    """A server process with low limits."""
    publish()
    return start_server("--max-image-pixels", str(MAX_PIXELS), "--max-image-bytes", str(MAX_BYTES))


@pytest.fixture
def classify(server: ServerProcess) -> Iterator[Classify]:
    """Classify encoded images over one channel."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.enable_retries", 0)]) as channel:
        call = channel.unary_unary(
            CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )

        def ask(*encoded: bytes) -> pb.ClassifyResponse:
            images = [pb.Image(encoded=each) for each in encoded]
            return call(pb.ClassifyRequest(model="colours", images=images, top_k=1), timeout=30)

        yield ask


def _top(prediction: pb.Prediction) -> str:
    return prediction.ranking.labels[0].label


def test_odd_images_are_classified_alone_and_among_others(
    classify: Classify,
) -> None:
    """Each kind gives its right label, and so do its neighbours."""
    neighbour = _file(_plain(BLUE))
    for name, (encoded, label) in GOOD.items():
        alone = classify(encoded).predictions
        among = classify(neighbour, encoded, neighbour).predictions

        assert [_top(each) for each in alone] == [label], name
        assert [_top(each) for each in among] == ["blue", label, "blue"], name
        assert among[1] == alone[0], name


def test_bad_images_are_refused_alone_and_among_others(classify: Classify) -> None:
    """Alone, the call is INVALID_ARGUMENT; among others, the image has the same code and message."""
    neighbour = _file(_plain(GREEN))
    for name, (encoded, message) in BAD.items():
        with pytest.raises(grpc.RpcError) as caught:
            classify(encoded)
        among = classify(neighbour, encoded, neighbour).predictions

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
        assert message in caught.value.details(), (name, caught.value.details())
        assert (among[1].error.code, among[1].error.message) == (3, caught.value.details()), name
        assert [_top(among[0]), _top(among[2])] == ["green", "green"], name


def test_all_of_them_together_keep_their_places(classify: Classify) -> None:
    """One request with all good and bad images."""
    good = list(GOOD.values())
    bad = list(BAD.values())
    mixed = [each for pair in zip(good, bad, strict=False) for each in pair]

    predictions = classify(*(encoded for encoded, _ in mixed)).predictions

    for prediction, (_, expected) in zip(predictions, mixed, strict=True):
        told = prediction.error.message if prediction.HasField("error") else _top(prediction)
        assert expected in told


def _resident_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_over_thousands_of_them(server: ServerProcess, classify: Classify) -> None:
    """After a warm-up, 2,000 requests of all kinds do not raise the server's resident memory."""
    good, bad = ([encoded for encoded, _ in kind.values()] for kind in (GOOD, BAD))

    def send(count: int) -> None:
        for number in range(count):
            odd, hostile = good[number % len(good)], bad[number % len(bad)]
            predictions = classify(odd, hostile).predictions
            assert [each.HasField("error") for each in predictions] == [False, True]

    send(300)
    before_bytes = _resident_bytes(server.process.pid)
    send(REQUESTS)
    growth_bytes = _resident_bytes(server.process.pid) - before_bytes

    assert growth_bytes < MAX_GROWTH_BYTES, f"{before_bytes} + {growth_bytes} bytes"
