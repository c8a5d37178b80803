"""Streams of the Python client against real servers: order, failures, pace, errors, cancellation."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.client.client import AsyncClient, CallFailed, Client, Prediction
from serving.client.images import ClientImage
from serving.client.messages import Result
from serving.errors import InvalidRequest
from serving.server import Server
from tests.colours import Publish
from tests.servers import Serve
from tests.serving.gated_server import GatedServer, ServeGated

STREAM = "/lenserve.v1.Classifier/ClassifyStream"
CLASSIFY = "/lenserve.v1.Classifier/Classify"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def _plain(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


def _told(result: Result) -> str:
    return result.top.label if isinstance(result, Prediction) else result.reason


def _address(server: Server | GatedServer) -> str:
    return f"127.0.0.1:{server.grpc.port}"


def _calls(server: Server | GatedServer, method: str, code: str = "OK") -> float:
    labels = {"method": method, "code": code}
    return server.metrics.registry.get_sample_value("lenserve_requests_total", labels) or 0


@pytest.fixture
async def server(publish: Publish, serve: Serve) -> AsyncIterator[Server]:
    """A real server of one model."""
    publish()
    async with serve() as server:
        yield server


async def _stream(
    kind: type[Client | AsyncClient], address: str, images: Iterable[ClientImage], **options: Any
) -> list[Result]:
    """All results of one stream of either client."""
    options = {"model": "colours", **options}
    if kind is AsyncClient:
        async with AsyncClient(address) as client:
            return [result async for result in client.classify_stream(images, **options)]

    def ask() -> list[Result]:
        with Client(address) as client:
            return list(client.classify_stream(images, **options))

    return await asyncio.to_thread(ask)


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
async def test_results_come_in_order_over_one_stream(
    server: Server, kind: type[Client | AsyncClient]
) -> None:
    """Three hundred images, one call."""
    names = [("red", "green", "blue")[n % 3] for n in range(300)]

    results = await _stream(kind, _address(server), map(_plain, names), top_k=1)

    assert list(map(_told, results)) == names
    assert {result.version for result in results if isinstance(result, Prediction)} == {1}
    assert (_calls(server, STREAM), _calls(server, CLASSIFY)) == (1, 0)


@both
async def test_bad_images_are_results_in_their_places(
    server: Server, kind: type[Client | AsyncClient], tmp_path: Path
) -> None:
    """The same as classify_all, whether the client or the server rejects them; also first and last."""
    images: list[ClientImage] = [
        tmp_path / "missing.png",
        tmp_path / "missing.png",
        _plain("red"),
        b"no image",
        np.zeros((2, 2, 9), np.uint8),
        b"",
        _plain("green"),
        tmp_path / "missing.png",
    ]

    results = await _stream(kind, _address(server), images)

    async with AsyncClient(_address(server)) as client:
        assert results == await client.classify_all(images, model="colours", images_per_request=1)
    assert [_told(results[place]) for place in (0, 2, 3, 6)] == [
        "UNDECODABLE_IMAGE",
        "red",
        "UNDECODABLE_IMAGE",
        "green",
    ]


@both
async def test_no_images_give_no_results(server: Server, kind: type[Client | AsyncClient]) -> None:
    """No image, or none that can be encoded."""
    assert await _stream(kind, _address(server), []) == []
    (failure,) = await _stream(kind, _address(server), ["/nowhere/x.png"])
    assert _told(failure) == "UNDECODABLE_IMAGE"


@both
async def test_a_failure_of_all_images_ends_the_stream(
    server: Server, kind: type[Client | AsyncClient]
) -> None:
    """An unknown model is an error of the call, not of an image."""
    with pytest.raises(CallFailed, match="NOT_FOUND: there is no model 'shapes'") as caught:
        await _stream(kind, _address(server), [_plain("red")] * 3, model="shapes")

    assert caught.value.cause == "UNKNOWN_MODEL"


@both
async def test_an_error_of_the_source_comes_after_the_results_before_it(
    server: Server, kind: type[Client | AsyncClient]
) -> None:
    """The iterable's exception reaches the caller, although another thread reads it."""
    results = []

    def images() -> Iterator[bytes]:
        yield _plain("red")
        yield _plain("blue")
        raise RuntimeError("the camera was unplugged")

    async def take() -> None:
        if kind is AsyncClient:
            async with AsyncClient(_address(server)) as client:
                async for result in client.classify_stream(images(), model="colours"):
                    results.append(result)  # noqa: PERF401 - what comes before the error counts
        else:

            def ask() -> None:
                with Client(_address(server)) as client:
                    results.extend(client.classify_stream(images(), model="colours"))

            await asyncio.to_thread(ask)

    with pytest.raises(RuntimeError, match="unplugged"):
        await take()
    if kind is AsyncClient:
        assert list(map(_told, results)) == ["red", "blue"]


@both
async def test_an_object_that_is_not_an_image_is_an_error(
    server: Server, kind: type[Client | AsyncClient]
) -> None:
    """A caller's mistake, as in classify_all."""
    with pytest.raises(InvalidRequest, match="NoneType is not an image"):
        await _stream(kind, _address(server), [_plain("red"), None])  # type: ignore[list-item]


@both
async def test_an_endless_source_is_read_only_as_far_as_the_server_accepts(
    server: Server, kind: type[Client | AsyncClient]
) -> None:
    """Closing the generator ends the call; the source was read only a little ahead of the results."""
    taken = itertools.count()
    images = (_plain("red") for _ in taken)

    async def first_three() -> list[Result]:
        if kind is AsyncClient:
            async with AsyncClient(_address(server)) as client:
                stream = client.classify_stream(images, model="colours")
                results = [await anext(stream) for _ in range(3)]
                await stream.aclose()
                return results

        def ask() -> list[Result]:
            with Client(_address(server)) as client:
                stream = client.classify_stream(images, model="colours")
                results = [next(stream) for _ in range(3)]
                stream.close()
                return results

        return await asyncio.to_thread(ask)

    assert list(map(_told, await first_three())) == ["red"] * 3
    async with asyncio.timeout(10):
        while not _calls(server, STREAM, "CANCELLED"):  # noqa: ASYNC110 - the end of a call sets no event
            await asyncio.sleep(0)
    assert next(taken) < 10_000


async def test_images_may_arrive_asynchronously(server: Server) -> None:
    """Each image is sent when it arrives; earlier results do not wait for it."""
    sending: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def camera() -> AsyncIterator[bytes]:
        while (image := await sending.get()) is not None:
            yield image

    async with AsyncClient(_address(server)) as client:
        stream = client.classify_stream(camera(), model="colours", top_k=1)
        told = []
        for name in ("red", "blue", "green"):
            sending.put_nowait(_plain(name))
            told.append(_told(await anext(stream)))
        sending.put_nowait(None)
        assert [result async for result in stream] == []

    assert told == ["red", "blue", "green"]


@both
async def test_a_full_server_gets_rejected_images_again(
    publish: Publish, serve_gated: ServeGated, kind: type[Client | AsyncClient]
) -> None:
    """With a limit of one pending image, a stream of five gets all results, in order, by retried calls."""
    publish()
    names = ["red", "green", "blue", "red", "green"]
    async with serve_gated(max_pending_images=1) as server:
        server.engine.close()
        stream = asyncio.create_task(_stream(kind, _address(server), list(map(_plain, names))))
        refused = {"method": STREAM, "code": "RESOURCE_EXHAUSTED"}
        async with asyncio.timeout(10):
            while not server.metrics.registry.get_sample_value(  # noqa: ASYNC110 - nothing tells of it
                "lenserve_stream_messages_total", refused
            ):
                await asyncio.sleep(0)
        server.engine.gate.set()

        assert list(map(_told, await stream)) == names
        assert _calls(server, CLASSIFY) >= 1


@both
async def test_a_stream_keeps_its_deadline(
    publish: Publish, serve_gated: ServeGated, kind: type[Client | AsyncClient]
) -> None:
    """timeout_s covers the whole stream."""
    publish()
    async with serve_gated() as server:
        server.engine.close()
        with pytest.raises(CallFailed, match=r"^DEADLINE_EXCEEDED: "):
            await _stream(kind, _address(server), [_plain("red")], timeout_s=0.2)


@both
async def test_a_token_goes_with_a_stream(
    publish: Publish,
    serve: Serve,
    tmp_path: Path,
    kind: type[Client | AsyncClient],
) -> None:
    """Without the token the stream is rejected."""
    publish()
    file = tmp_path / "tokens.toml"
    file.write_text('[tokens]\n"abc" = ["colours"]\n')
    async with serve(token_file=file) as server:
        with pytest.raises(CallFailed, match=r"^UNAUTHENTICATED: "):
            await _stream(kind, _address(server), [_plain("red")])
        async with AsyncClient(_address(server), token="abc") as client:  # noqa: S106
            (result,) = [each async for each in client.classify_stream([_plain("red")], model="colours")]

    assert _told(result) == "red"
