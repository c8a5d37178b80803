"""The Python client against real servers: all image types, chunks, retries, deadlines, errors."""

import asyncio
import io
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from serving.bundle import Repository
from serving.client.client import AsyncClient, CallFailed, Client, Label, Prediction
from serving.client.images import ClientImage
from serving.client.messages import Result
from serving.errors import InvalidPixels, InvalidRequest, UndecodableImage, UsageError
from serving.metrics.recorder import Metrics
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.middleware import Middleware
from serving.rpc.routes import Call, Unary
from serving.server import Server
from serving.transports.rpc_over_http.server import H2Server
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import GatedServer, ServeGated

CLASSIFY = "/lenserve.v1.Classifier/Classify"
_RNG = np.random.default_rng(7)
RGBA = _RNG.integers(0, 256, (11, 9, 4), np.uint8)  # (H, W, C)


def _file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _plain(colour: tuple[int, int, int]) -> bytes:
    return _file(Image.new("RGB", (5, 4), colour))


@pytest.fixture
async def server(publish: Publish, serve: Serve) -> AsyncIterator[Server]:
    """A real server of one model."""
    publish()
    async with serve() as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    """A client of that server."""
    async with AsyncClient(_address(server)) as client:
        yield client


def _address(server: Server | GatedServer) -> str:
    return f"127.0.0.1:{server.grpc.port}"


async def test_a_prediction_has_labels_and_its_version(client: AsyncClient) -> None:
    """Plain frozen values, most probable first."""
    prediction = await client.classify(_plain((0, 0, 255)), model="colours", top_k=2)

    assert prediction == Prediction("colours", 1, prediction.labels)
    assert [(each.label, each.index) for each in prediction.labels] == [("blue", 2), ("red", 0)]
    assert prediction.top == Label("blue", 2, prediction.labels[0].probability)
    assert prediction.top.probability == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-6)


async def test_the_sync_client_is_the_same(server: Server, client: AsyncClient, tmp_path: Path) -> None:
    """Both clients give equal answers for one image and for many."""
    file = tmp_path / "red.png"
    file.write_bytes(_plain((255, 0, 0)))
    images: list[ClientImage] = [file, str(file), b"no image", RGBA]

    def ask() -> tuple[Prediction, list[Result]]:
        with Client(_address(server)) as sync:
            one = sync.classify(file, model="colours")
            return one, list(sync.classify_all(iter(images), model="colours", images_per_request=3))

    one, several = await asyncio.to_thread(ask)

    assert one == await client.classify(file, model="colours")
    assert several == await client.classify_all(images, model="colours")
    assert several[0] == several[1] == one


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
async def test_an_array_is_classified_like_its_file(client: AsyncClient, channels: int) -> None:
    """(H, W) and (H, W, 1..4) uint8 give the same result as the PNG file with these pixels."""
    pixels = RGBA[:, :, 0] if channels == 0 else RGBA[:, :, :channels]
    file = _file(Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels))

    from_array = await client.classify(pixels, model="colours")

    assert from_array == await client.classify(file, model="colours")


async def test_a_view_of_an_array_is_classified_like_its_copy(client: AsyncClient) -> None:
    """Strides and memory order do not matter."""
    view = RGBA[::-2, 1::3, :3]

    assert await client.classify(view, model="colours") == await client.classify(view.copy(), model="colours")


def _pil(mode: str) -> tuple[Image.Image, str]:
    colour = Image.fromarray(RGBA[:, :, :3])
    images = {
        "1": (colour.convert("1"), "PNG"),
        "L": (colour.convert("L"), "PNG"),
        "L with transparency": (colour.convert("L"), "PNG"),
        "LA": (Image.fromarray(RGBA).convert("LA"), "PNG"),
        "P": (colour.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "P with transparency": (colour.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        "RGB": (colour, "BMP"),
        "RGB with transparency": (colour, "PNG"),
        "RGBA": (Image.fromarray(RGBA), "WEBP"),
        "CMYK": (colour.convert("CMYK"), "JPEG"),
        "YCbCr": (colour.convert("YCbCr"), "JPEG"),
        "LAB": (Image.fromarray(RGBA[:, :, :3], "LAB"), "TIFF"),
        "I;16": (Image.fromarray(_RNG.integers(0, 65536, (6, 7), np.uint16)), "PNG"),
        "I;16B": (Image.frombytes("I;16B", (3, 2), RGBA.tobytes()[:12]), "TIFF"),
    }
    return images[mode]


MODES = [
    *("1", "L", "L with transparency", "LA", "P", "P with transparency", "RGB", "RGB with transparency"),
    *("RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B"),
]
_TRANSPARENT = {
    "L with transparency": 20,
    "P with transparency": 3,
    "RGB with transparency": tuple(RGBA[0, 0, :3].tolist()),
}


@pytest.mark.parametrize("mode", MODES)
async def test_a_pil_image_is_classified_like_its_file(client: AsyncClient, mode: str) -> None:
    """In every mode that Pillow reads from files, the image and its file give the same result."""
    image, form = _pil(mode)
    options = {"transparency": _TRANSPARENT[mode]} if mode in _TRANSPARENT else {}
    if form == "WEBP":
        options["lossless"] = True
    file = _file(image, form, **options)

    with Image.open(io.BytesIO(file)) as opened:
        from_pil = await client.classify(opened, model="colours")

    assert from_pil == await client.classify(file, model="colours")


async def test_a_turned_pil_image_is_classified_upright(client: AsyncClient) -> None:
    """EXIF orientation applies to PIL images as to files; the caller's image is not changed."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    file = _file(Image.fromarray(RGBA[:, :, :3]), "PNG", exif=exif.tobytes())
    with Image.open(io.BytesIO(file)) as image:
        from_pil = await client.classify(image, model="colours")
        assert image.getexif()[0x0112] == 6

    assert from_pil == await client.classify(file, model="colours")


@pytest.mark.parametrize("mode", ["HSV", "F"])
async def test_a_pil_image_of_unknown_range_is_refused(client: AsyncClient, mode: str) -> None:
    """Modes that no file has, or without a known range, raise an error with a clear message."""
    with pytest.raises((UndecodableImage, CallFailed), match=mode):
        await client.classify(Image.new(mode, (3, 3)), model="colours")


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        pytest.param(None, InvalidRequest, "NoneType is not an image: expected bytes, a path", id="none"),
        pytest.param(np.zeros((2, 2)), InvalidPixels, r"pixels are float64 \[2, 2\]", id="float"),
        pytest.param(np.zeros(4, np.uint8), InvalidPixels, r"pixels are uint8 \[4\], expected", id="flat"),
        pytest.param("/nowhere/x.png", UndecodableImage, "x.png cannot be read: No such file", id="missing"),
    ],
)
async def test_an_object_that_is_not_an_image_is_refused_before_it_is_sent(
    client: AsyncClient, image: ClientImage, kind: type[Exception], message: str
) -> None:
    """A caller's mistake raises an exception with a clear message, without a call."""
    with pytest.raises(kind, match=message):
        await client.classify(image, model="colours")


async def test_a_truncated_pil_image_is_refused(client: AsyncClient) -> None:
    """Pillow reads lazily: its late error becomes ours."""
    with (
        Image.open(io.BytesIO(_file(Image.fromarray(RGBA), "PNG")[:200])) as image,
        pytest.raises(UndecodableImage, match="the PIL image cannot be read: "),
    ):
        await client.classify(image, model="colours")


@pytest.mark.parametrize("per_request", [1, 2, 100])
async def test_bad_images_of_many_are_results_in_their_places(
    server: Server, client: AsyncClient, tmp_path: Path, per_request: int
) -> None:
    """Whether the server or the client rejects them, order is kept."""
    images: list[ClientImage] = [
        _plain((255, 0, 0)),
        b"no image",
        tmp_path / "missing.png",
        np.zeros((2, 2, 9), np.uint8),
        b"",
        _plain((0, 255, 0)),
    ]

    def ask() -> list[Result]:
        with Client(_address(server)) as sync:
            return list(sync.classify_all(images, model="colours", images_per_request=per_request))

    results = await client.classify_all(images, model="colours", images_per_request=per_request)

    assert results == await asyncio.to_thread(ask)
    told = [each.top.label if isinstance(each, Prediction) else (each.code, each.reason) for each in results]
    assert told == [
        "red",
        ("INVALID_ARGUMENT", "UNDECODABLE_IMAGE"),
        ("INVALID_ARGUMENT", "UNDECODABLE_IMAGE"),
        ("INVALID_ARGUMENT", "INVALID_PIXELS"),
        ("INVALID_ARGUMENT", "EMPTY_IMAGE"),
        "green",
    ]


async def test_many_images_are_sent_in_chunks_by_count(server: Server, client: AsyncClient) -> None:
    """7 images, 3 per request: 3 requests."""
    await client.classify_all([RGBA] * 7, model="colours", images_per_request=3)

    assert _requests(server) == 3


async def test_large_images_are_sent_in_chunks_by_bytes(publish: Publish, serve: Serve) -> None:
    """Requests stay below the server's default limit of 36 MiB, even if more images are allowed."""
    publish()
    large = np.zeros((4000, 4000), np.uint8)  # (H, W): 16 MB raw
    async with serve() as server, AsyncClient(_address(server)) as client:
        results = await client.classify_all([large] * 5, model="colours", images_per_request=32)

        assert _requests(server) == 3
    assert all(isinstance(result, Prediction) for result in results)


async def test_a_generator_is_read_as_results_are_consumed(server: Server) -> None:
    """The sync client holds one chunk of images at a time, so the source may be endless."""
    taken: list[int] = []

    def images() -> Iterator[bytes]:
        for number in range(10**9):
            taken.append(number)
            yield _plain((255, 0, 0))

    def first_three() -> list[Result]:
        with Client(_address(server)) as sync:
            results = sync.classify_all(images(), model="colours", images_per_request=2)
            return [next(results) for _ in range(3)]

    results = await asyncio.to_thread(first_three)

    assert [each.top.label for each in results if isinstance(each, Prediction)] == ["red"] * 3
    assert len(taken) <= 6


async def test_no_images_are_no_calls(server: Server, client: AsyncClient) -> None:
    """An empty list gives an empty list."""
    assert await client.classify_all([], model="colours") == []
    assert _requests(server) == 0


def _requests(server: Server | GatedServer) -> float:
    value = server.metrics.registry.get_sample_value(
        "lenserve_request_duration_seconds_count", {"method": CLASSIFY}
    )
    return value or 0


@pytest.mark.parametrize(
    ("model", "options", "code", "cause", "message"),
    [
        ("shapes", {}, "NOT_FOUND", "UNKNOWN_MODEL", "there is no model 'shapes'; known models: colours"),
        ("colours@9", {}, "NOT_FOUND", "UNKNOWN_MODEL", "version 9 of model 'colours' is not served"),
        ("colours@canary", {}, "NOT_FOUND", "UNKNOWN_MODEL", "model 'colours' has no alias 'canary'"),
        ("colours", {"top_k": -1}, "INVALID_ARGUMENT", "INVALID_REQUEST", "top_k is -1, expected at least 0"),
    ],
)
async def test_a_refused_call_has_code_cause_message_and_request_id(
    *,
    server: Server,
    client: AsyncClient,
    model: str,
    options: dict[str, int],
    code: str,
    cause: str,
    message: str,
) -> None:
    """The exception's attributes hold the server's error; none of these is retried."""
    for call in (client.classify, lambda image, **rest: client.classify_all([image], **rest)):
        with pytest.raises(CallFailed) as caught:
            await call(RGBA, model=model, **options)

        error = caught.value
        assert (error.code, error.cause) == (code, cause)
        assert error.message.startswith(message)
        assert str(error) == f"{code}: {error.message}"
        assert len(error.request_id) == 16
    assert _requests(server) == 2


@pytest.mark.parametrize("name", ["colours@1", "colours@stable"])
async def test_a_version_or_an_alias_follows_an_at_sign(
    publish: Publish, serve: Serve, repository: Repository, name: str
) -> None:
    """MODEL@VERSION and MODEL@ALIAS."""
    publish()
    publish(rotate=1)
    repository.set_alias("colours", "stable", 1)
    repository.set_alias("colours", "canary", 2)
    async with serve() as server, AsyncClient(_address(server)) as client:
        assert (await client.classify(RGBA, model=name)).version == 1
        assert (await client.classify(RGBA, model="colours@canary")).version == 2


async def test_a_token_is_sent(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    """With the token the call succeeds, without it it fails with UNAUTHENTICATED."""
    publish()
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"abc" = ["colours"]\n')
    async with serve(token_file=file) as server:
        async with AsyncClient(_address(server), token="abc") as client:  # noqa: S106
            assert (await client.classify(RGBA, model="colours")).version == 1
        async with AsyncClient(_address(server)) as client:
            with pytest.raises(CallFailed, match=r"^UNAUTHENTICATED: "):
                await client.classify(RGBA, model="colours")


class _Flaky:
    """A handler that fails once with each given code, then answers."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self._codes = list(codes)
        self.calls = 0

    async def handle(
        self, _request: pb.ClassifyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ClassifyResponse:
        self.calls += 1
        if self._codes:
            await context.abort(self._codes.pop(0), "not now")
        ranking = pb.Ranking(labels=[pb.Label(label="red")])
        return pb.ClassifyResponse(model="colours", version=1, predictions=[pb.Prediction(ranking=ranking)])


ServeFlaky = Callable[[_Flaky], Awaitable[str]]


@pytest.fixture
async def serve_flaky() -> AsyncIterator[ServeFlaky]:
    """Start a grpc.aio server with one handler; returns its address."""
    servers = []

    async def start(flaky: _Flaky) -> str:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            flaky.handle, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
        )
        handlers = grpc.method_handlers_generic_handler("lenserve.v1.Classifier", {"Classify": handler})
        server.add_generic_rpc_handlers((handlers,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"])
async def test_transient_errors_are_retried(serve_flaky: ServeFlaky, code: str) -> None:
    """Transient errors are retried until the call succeeds."""
    flaky = _Flaky(grpc.StatusCode[code], grpc.StatusCode[code])
    async with AsyncClient(await serve_flaky(flaky)) as client:
        prediction = await client.classify(RGBA, model="colours")

    assert prediction.top.label == "red"
    assert flaky.calls == 3


async def test_attempts_are_counted(serve_flaky: ServeFlaky) -> None:
    """After the last attempt the error is raised; attempts=1 means no retry."""
    unavailable = grpc.StatusCode.UNAVAILABLE
    for attempts in (1, 3):
        flaky = _Flaky(*[unavailable] * 9)
        async with AsyncClient(await serve_flaky(flaky), attempts=attempts) as client:
            with pytest.raises(CallFailed, match=r"^UNAVAILABLE: not now$"):
                await client.classify(RGBA, model="colours")
        assert flaky.calls == attempts


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "INTERNAL", "UNAUTHENTICATED"])
async def test_permanent_errors_are_not_retried(serve_flaky: ServeFlaky, code: str) -> None:
    """Permanent errors are raised at once."""
    flaky = _Flaky(grpc.StatusCode[code])
    async with AsyncClient(await serve_flaky(flaky)) as client:
        with pytest.raises(CallFailed, match=rf"^{code}: not now$"):
            await client.classify(RGBA, model="colours")

    assert flaky.calls == 1


async def test_a_large_image_is_retried_too(serve_flaky: ServeFlaky) -> None:
    """GRPC itself would not retry requests above 256 KiB."""
    flaky = _Flaky(grpc.StatusCode.UNAVAILABLE)
    async with AsyncClient(await serve_flaky(flaky)) as client:
        await client.classify(np.zeros((700, 700, 3), np.uint8), model="colours")

    assert flaky.calls == 2


async def test_a_call_to_a_full_server_is_retried(publish: Publish, serve_gated: ServeGated) -> None:
    """A real server that is full rejects a call, and answers its retry."""
    publish()
    async with serve_gated(max_pending_images=1) as server, AsyncClient(_address(server)) as client:
        server.engine.close()
        first = asyncio.create_task(client.classify(RGBA, model="colours"))
        await asyncio.to_thread(server.engine.entered.wait, 10)
        second = asyncio.create_task(client.classify(RGBA, model="colours"))
        async with asyncio.timeout(10):
            while not _requests(server):  # noqa: ASYNC110 - the refusal sets no event
                await asyncio.sleep(0)
        server.engine.gate.set()

        assert await first == await second
        refused = {"method": CLASSIFY, "code": "RESOURCE_EXHAUSTED"}
        assert (server.metrics.registry.get_sample_value("lenserve_requests_total", refused) or 0) >= 1


async def test_a_server_that_starts_late_is_waited_for() -> None:
    """Refused connections are retried: a client may start before its server."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            call = asyncio.create_task(client.classify(RGBA, model="colours"))
            done, _ = await asyncio.wait([call], timeout=0.15)
            assert not done
            reserved.close()
            row = Unary(CLASSIFY, pb.ClassifyRequest, _always_red)
            async with H2Server(
                [Middleware(Metrics()).wrap(row)], host="127.0.0.1", port=port, max_message_bytes=2**20
            ):
                assert (await call).top.label == "red"


async def _always_red(_request: pb.ClassifyRequest, _call: Call) -> pb.ClassifyResponse:
    ranking = pb.Ranking(labels=[pb.Label(label="red")])
    return pb.ClassifyResponse(predictions=[pb.Prediction(ranking=ranking)])


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_an_unreachable_server_is_reported_at_the_deadline(kind: type[Client | AsyncClient]) -> None:
    """No server: UNAVAILABLE with the address, after several attempts. The caller hears of each."""
    retried: list[str] = []
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        started_s = time.monotonic()
        with pytest.raises(CallFailed, match=r"^UNAVAILABLE: ") as caught:
            await _classify(
                kind(address, timeout_s=0.5, on_retry=lambda failure, _: retried.append(failure.code))
            )

    assert address in caught.value.message
    assert time.monotonic() - started_s < 5
    assert set(retried) == {"UNAVAILABLE"}


async def _classify(client: Client | AsyncClient) -> Prediction:
    if isinstance(client, AsyncClient):
        async with client:
            return await client.classify(RGBA, model="colours")
    with client:
        return await asyncio.to_thread(client.classify, RGBA, model="colours")


@pytest.mark.parametrize(
    ("model", "top_k", "message"),
    [
        ("colours@9223372036854775808", 0, r"version 9223372036854775808 is out of range: the highest is 92"),
        ("colours@" + "9" * 5000, 0, r"version 9+ is out of range"),
        ("colours", 2**31, r"top_k is 2147483648: choose a number from 0 to 2147483647"),
        ("colours\udcff", 0, r"model 'colours\\udcff' is not text in UTF-8"),
        ("colours@\udcff", 0, r"is not text in UTF-8"),
    ],
)
async def test_a_number_or_a_name_that_no_message_can_hold_is_refused(
    client: AsyncClient, model: str, top_k: int, message: str
) -> None:
    """With the limit, before it is sent."""
    with pytest.raises(InvalidRequest, match=message):
        await client.classify(RGBA, model=model, top_k=top_k)


@pytest.mark.parametrize("token", ["a\nb", "ä", "a\udcff"])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    """When the client is made; gRPC's own error would come with the first call, without the reason."""
    with pytest.raises(UsageError, match=r"the token has characters that no header can carry"):
        Client(token=token)


@pytest.mark.parametrize("timeout_s", [1e12, float("inf")])
async def test_a_very_long_timeout_is_accepted(client: AsyncClient, timeout_s: float) -> None:
    """It is as good as none."""
    assert (await client.classify(RGBA, model="colours", timeout_s=timeout_s)).version == 1


@pytest.mark.parametrize("timeout_s", [0.0, 0.2])
async def test_a_deadline_is_kept(publish: Publish, serve_gated: ServeGated, timeout_s: float) -> None:
    """Without an answer in time, retries included, the call is DEADLINE_EXCEEDED; 0 is a deadline too."""
    publish()
    async with serve_gated() as server, AsyncClient(_address(server)) as client:
        server.engine.close()
        started_s = time.monotonic()
        with pytest.raises(CallFailed, match=r"^DEADLINE_EXCEEDED: "):
            await client.classify(RGBA, model="colours", timeout_s=timeout_s)
        assert time.monotonic() - started_s < timeout_s + 2
        async with AsyncClient(_address(server), timeout_s=0.1) as hasty:
            with pytest.raises(CallFailed, match=r"^DEADLINE_EXCEEDED: "):
                await hasty.classify(RGBA, model="colours")


async def test_threads_may_share_a_client(server: Server) -> None:
    """Eight threads, one connection."""
    with Client(_address(server)) as client:
        calls = [asyncio.to_thread(client.classify, RGBA, model="colours") for _ in range(8)]
        predictions = await asyncio.gather(*calls)

    assert len(set(map(repr, predictions))) == 1
