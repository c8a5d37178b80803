"""The Python client: images as bytes, paths, numpy arrays or PIL images in, ranked labels out.

    with Client("127.0.0.1:8001") as client:
        print(client.classify("digit.png", model="lenet5-digits", top_k=3).top)

Retries are gRPC's own (service config, gRFC A6): with growing pauses on UNAVAILABLE and RESOURCE_EXHAUSTED,
never beyond the deadline. `AsyncClient` is the same with `await`.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from serving.client.connection import Connection, open_channel
from serving.client.images import ClientImage, encode_image
from serving.client.messages import (
    CallFailed,
    Chunk,
    Exchange,
    ImageFailure,
    Label,
    Prediction,
    Result,
    chunks,
    decode_error,
    decode_only,
    encode_request,
)
from serving.pb.lenserve.v1 import classifier_pb2 as pb

__all__ = [
    "AsyncClient",
    "CallFailed",
    "Client",
    "ClientImage",
    "ImageFailure",
    "Label",
    "Prediction",
    "encode_image",
]

DEFAULT_SERVER = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 30.0


class Client(Connection):
    """A connection to a server, over TLS where an authority is given to trust. Threads may share one."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int = 5,
        tls_ca_file: Path | str | None = None,
        tls_cert_file: Path | str | None = None,
        tls_key_file: Path | str | None = None,
    ) -> None:
        channel = open_channel(
            grpc,
            server,
            attempts=attempts,
            tls_ca_file=tls_ca_file,
            tls_cert_file=tls_cert_file,
            tls_key_file=tls_key_file,
        )
        super().__init__(channel, token=token, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def classify(
        self, image: ClientImage, *, model: str, top_k: int = 0, timeout_s: float | None = None
    ) -> Prediction:
        """Classify one image.

        Args:
            image: an encoded file as bytes or path, (H, W) or (H, W, C) uint8, or a PIL image.
            model: MODEL, MODEL@VERSION or MODEL@ALIAS.
            top_k: how many labels; 0 means the server's default.
            timeout_s: for all attempts together.

        Raises:
            InvalidRequest: the image cannot be read here.
            CallFailed: with the status code and the server's message.
        """
        return decode_only(self._send(encode_request([encode_image(image)], model, top_k), timeout_s))

    def classify_all(
        self,
        images: Iterable[ClientImage],
        *,
        model: str,
        top_k: int = 0,
        timeout_s: float | None = None,
        images_per_request: int = 32,
    ) -> Iterator[Prediction | ImageFailure]:
        """Classify any number of images, in order, a few in each request. A bad image is a result, no error.

        Args:
            images: as in `classify`.
            model: as in `classify`.
            top_k: as in `classify`.
            timeout_s: for each request.
            images_per_request: at most; fewer where they are large.

        Raises:
            CallFailed: a whole request failed.
        """
        for chunk in chunks(images, images_per_request):
            yield from self._ask(chunk, model, top_k, timeout_s)

    def classify_stream(
        self, images: Iterable[ClientImage], *, model: str, top_k: int = 0, timeout_s: float | None = None
    ) -> Generator[Prediction | ImageFailure, None, None]:
        """Classify images as they come, over one stream: results in order, a bad image is a result.

        The cheapest way for many images, and the one for sources that never end: images are read and sent
        while earlier ones are answered, only so far ahead as the server takes them in. `images` is read in
        a thread of its own. An image that finds the server full is asked for again by a call of its own.

        Args:
            images: as in `classify`.
            model: as in `classify`.
            top_k: as in `classify`.
            timeout_s: for the whole stream; None means no limit.

        Raises:
            CallFailed: the stream broke, or an image failed for a reason that the next one would fail for.
        """
        exchange = Exchange(model, top_k)
        call = self._classify_stream(_requests(images, exchange), timeout=timeout_s, metadata=self._metadata)
        try:
            for response in call:
                yield from exchange.failures()
                settled = exchange.settle(response)
                if isinstance(settled, pb.Image):
                    settled = decode_only(self._send(encode_request([settled], model, top_k), None))
                yield settled
        except grpc.RpcError as error:
            raise decode_error(error) from error
        finally:
            call.cancel()
        yield from exchange.failures()
        if exchange.error is not None:
            raise exchange.error

    def _ask(self, chunk: Chunk, model: str, top_k: int, timeout_s: float | None) -> list[Result]:
        if not chunk.images:
            return chunk.results(None)
        try:
            return chunk.results(self._send(encode_request(chunk.images, model, top_k), timeout_s))
        except CallFailed as error:
            return chunk.results(error)

    def _send(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        try:
            response: pb.ClassifyResponse = self._classify(request, **self._options(timeout_s))
        except grpc.RpcError as error:
            raise decode_error(error) from error
        return response


class AsyncClient(Connection):
    """A connection to a server, for asyncio."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int = 5,
        tls_ca_file: Path | str | None = None,
        tls_cert_file: Path | str | None = None,
        tls_key_file: Path | str | None = None,
    ) -> None:
        channel = open_channel(
            grpc.aio,
            server,
            attempts=attempts,
            tls_ca_file=tls_ca_file,
            tls_cert_file=tls_cert_file,
            tls_key_file=tls_key_file,
        )
        super().__init__(channel, token=token, timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def classify(
        self, image: ClientImage, *, model: str, top_k: int = 0, timeout_s: float | None = None
    ) -> Prediction:
        """Classify one image; see `Client.classify`."""
        return decode_only(await self._send(encode_request([encode_image(image)], model, top_k), timeout_s))

    async def classify_all(
        self,
        images: Iterable[ClientImage],
        *,
        model: str,
        top_k: int = 0,
        timeout_s: float | None = None,
        images_per_request: int = 32,
    ) -> list[Prediction | ImageFailure]:
        """Classify any number of images, in order; see `Client.classify_all`."""
        results: list[Result] = []
        for chunk in chunks(images, images_per_request):
            results += await self._ask(chunk, model, top_k, timeout_s)
        return results

    async def classify_stream(
        self,
        images: Iterable[ClientImage] | AsyncIterable[ClientImage],
        *,
        model: str,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Prediction | ImageFailure, None]:
        """Classify images as they come, over one stream; see `Client.classify_stream`."""
        exchange = Exchange(model, top_k)
        requests = _requests_of_async(images, exchange)
        call = self._classify_stream(requests, timeout=timeout_s, metadata=self._metadata)
        try:
            async for response in call:
                for failure in exchange.failures():
                    yield failure
                settled = exchange.settle(response)
                if isinstance(settled, pb.Image):
                    settled = decode_only(await self._send(encode_request([settled], model, top_k), None))
                yield settled
        except grpc.RpcError as error:
            raise await self._why(decode_error(error), exchange) from error
        finally:
            call.cancel()
        for failure in exchange.failures():
            yield failure
        if exchange.error is not None:
            raise exchange.error

    async def _why(self, failure: CallFailed, exchange: Exchange) -> CallFailed:
        """grpc.aio forgets how a stream ended that was refused while a message was written: a call tells."""
        request = exchange.oldest_request()
        if failure.message != "Internal error from Core" or request is None:
            return failure
        try:
            await self._send(request, None)
        except CallFailed as reason:
            return reason
        return failure

    async def _ask(self, chunk: Chunk, model: str, top_k: int, timeout_s: float | None) -> list[Result]:
        if not chunk.images:
            return chunk.results(None)
        try:
            return chunk.results(await self._send(encode_request(chunk.images, model, top_k), timeout_s))
        except CallFailed as error:
            return chunk.results(error)

    async def _send(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        try:
            response: pb.ClassifyResponse = await self._classify(request, **self._options(timeout_s))
        except grpc.RpcError as error:
            raise decode_error(error) from error
        return response


def _requests(images: Iterable[ClientImage], exchange: Exchange) -> Iterator[pb.ClassifyRequest]:
    """What a stream sends. gRPC reads it in its own thread, where an error would be lost: it is kept."""
    try:
        for image in images:
            request = exchange.take(image)
            if request is not None:
                yield request
    except Exception as error:  # noqa: BLE001 - whatever the caller's iterable raises
        exchange.error = error


async def _requests_of_async(
    images: Iterable[ClientImage] | AsyncIterable[ClientImage], exchange: Exchange
) -> AsyncIterator[pb.ClassifyRequest]:
    try:
        async for image in _each(images):
            request = exchange.take(image)
            if request is not None:
                yield request
    except Exception as error:  # noqa: BLE001 - as in _requests
        exchange.error = error


async def _each(images: Iterable[ClientImage] | AsyncIterable[ClientImage]) -> AsyncIterator[ClientImage]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
