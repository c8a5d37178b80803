"""The Python client, synchronous and asynchronous: images in, ranked labels out.

    with Client("127.0.0.1:8001") as client:
        print(client.classify("digit.png", model="lenet5-digits", top_k=3).top)

Calls that fail for a passing reason are repeated until their deadline (`retries.py`): servers may restart.
`AsyncClient` offers the same calls with `await`.

Both are in one file, because a change to one is a change to the other.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from serving.client.connection import BaseClient, metadata_request, not_ready, open_channel, reason_of
from serving.client.image_stream import ImageStream
from serving.client.images import ClientImage, encode_image
from serving.client.messages import (
    CallFailed,
    Chunk,
    ImageFailure,
    Label,
    Prediction,
    Result,
    chunks,
    decode_error,
    decode_single,
    encode_request,
)
from serving.client.retries import OnRetry, Retries
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
DEFAULT_WAIT_S = 60.0

_LOST_STATUS = "Internal error from Core"  # see `AsyncClient._find_cause`


class Client(BaseClient):
    """A client for synchronous code. Thread-safe: several threads may share one.

    Args:
        server: HOST:PORT, HOST, or [ADDRESS]:PORT for IPv6; without a port, 8001.
        token: bearer token, if the server requires one.
        timeout_s: default deadline of a request, in seconds, for all attempts together.
        attempts: maximum attempts of a request; 1 turns retries off; None: as many as `timeout_s` allows.
        on_retry: called with the failure and the seconds until the next attempt.
        tls_ca_file: PEM file of the authorities to trust; without it the connection is not encrypted.
        tls_cert_file: PEM file of the client's certificate, if the server requires one.
        tls_key_file: PEM file of the certificate's key.
        tls_server_name: the name that the server's certificate must have, if that is not the host's.

    Raises:
        UsageError: the address is invalid, a TLS file cannot be read, or the certificate, its key or the
            authority is missing.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int | None = None,
        on_retry: OnRetry | None = None,
        tls_ca_file: Path | str | None = None,
        tls_cert_file: Path | str | None = None,
        tls_key_file: Path | str | None = None,
        tls_server_name: str | None = None,
    ) -> None:
        channel = open_channel(
            grpc,
            server,
            tls_ca_file=tls_ca_file,
            tls_cert_file=tls_cert_file,
            tls_key_file=tls_key_file,
            tls_server_name=tls_server_name,
        )
        super().__init__(channel, token=token, timeout_s=timeout_s, attempts=attempts, on_retry=on_retry)

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
            image: the bytes or the path of an encoded file; an array (H, W) or (H, W, C) uint8, C in 1..4,
                0-255 (grey, grey + alpha, RGB, RGB + alpha); or a PIL image.
            model: MODEL, MODEL@VERSION or MODEL@ALIAS.
            top_k: number of labels; 0 means the server's default.
            timeout_s: deadline in seconds, for all attempts together; None means the client's default.

        Raises:
            InvalidRequest: the image cannot be read or has an unsupported type.
            CallFailed: the server rejected or failed the call, or did not answer.
        """
        return decode_single(self._send(encode_request([encode_image(image)], model, top_k), timeout_s))

    def classify_all(
        self,
        images: Iterable[ClientImage],
        *,
        model: str,
        top_k: int = 0,
        timeout_s: float | None = None,
        images_per_request: int = 32,
    ) -> Iterator[Prediction | ImageFailure]:
        """Classify any number of images, several per request; yield one result per image, in order.

        An invalid image yields an `ImageFailure` and does not stop the others.

        Args:
            images: as in `classify`.
            model: as in `classify`.
            top_k: as in `classify`.
            timeout_s: deadline of each request, in seconds; None means the client's default.
            images_per_request: maximum images in a request; a request that reaches 32 MiB gets fewer.

        Raises:
            InvalidRequest: an image has an unsupported type.
            CallFailed: a whole request failed.
        """
        for chunk in chunks(images, images_per_request):
            yield from self._classify_chunk(chunk, model, top_k, timeout_s)

    def classify_stream(
        self, images: Iterable[ClientImage], *, model: str, top_k: int = 0, timeout_s: float | None = None
    ) -> Generator[Prediction | ImageFailure, None, None]:
        """Classify images over one stream; yield one result per image, in order, as they become ready.

        The most efficient call for many images, and the only one for endless sources. Images are sent before
        earlier ones are answered, as far ahead as the server accepts them. gRPC iterates over `images` in
        another thread. If the server rejects an image as overloaded, the image is sent again in a separate
        call. An invalid image yields an `ImageFailure`.

        Args:
            images: as in `classify`.
            model: as in `classify`.
            top_k: as in `classify`.
            timeout_s: deadline of the whole stream, in seconds; None means no deadline.

        Raises:
            InvalidRequest: an image has an unsupported type.
            CallFailed: the stream failed, or an image failed for a reason that affects all, such as an
                unknown model.
        """
        stream, retries = ImageStream(images, model, top_k), self._stream_retries(timeout_s)
        while True:
            call = self._classify_stream(
                stream.requests(), timeout=retries.deadline_s, metadata=self._metadata
            )
            try:
                for response in call:
                    retries.note_progress()
                    yield from stream.failures()
                    result = stream.match(response)
                    if isinstance(result, pb.ClassifyRequest):
                        result = decode_single(self._send(result, retries.deadline_s))
                    yield result
            except grpc.RpcError as error:
                failure = decode_error(error)
            else:
                if stream.is_complete:
                    break
                failure = stream.ended_early()
            finally:
                call.cancel()
            time.sleep(retries.pause_s(failure))
        yield from stream.failures()
        if stream.error is not None:
            raise stream.error

    def wait_ready(self, model: str = "", *, timeout_s: float = DEFAULT_WAIT_S) -> None:
        """Wait until the server is ready, or a model: MODEL, MODEL@VERSION or MODEL@ALIAS.

        Args:
            model: the model; empty: the server.
            timeout_s: for how long.

        Raises:
            CallFailed: it is not ready in time, with the server's reason, or the server rejects the call.
            InvalidRequest: the model is not text in UTF-8.
        """
        call, request = self._readiness(model)
        retries = Retries(timeout_s, on_retry=self._on_retry)
        reason = ""  # as the server last said: it may have no time to repeat it before the deadline
        while not self._attempt(call, request, retries).ready:
            reason = (self._why_not_ready(request, retries) if model else "") or reason
            time.sleep(retries.pause_s(not_ready(model, reason)))

    def _why_not_ready(self, request: Any, retries: Retries) -> str:  # noqa: ANN401 - untyped library
        """Ask once why a model is not ready; empty if that is not said."""
        once = Retries(retries.left_s, attempts=1)
        try:
            self._attempt(self._model_metadata, metadata_request(request), once)
        except CallFailed as refusal:
            return reason_of(refusal)
        return ""  # it has become ready

    def _classify_chunk(self, chunk: Chunk, model: str, top_k: int, timeout_s: float | None) -> list[Result]:
        if not chunk.images:
            return chunk.results(None)
        try:
            return chunk.results(self._send(encode_request(chunk.images, model, top_k), timeout_s))
        except CallFailed as error:
            return chunk.results(error)

    def _send(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        response: pb.ClassifyResponse = self._attempt(self._classify, request, self._retries(timeout_s))
        return response

    def _attempt(self, call: Any, request: Any, retries: Retries) -> Any:  # noqa: ANN401 - any method
        """Call until an attempt succeeds."""
        while True:
            try:
                return call(request, timeout=retries.left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                time.sleep(retries.pause_s(decode_error(error)))


class AsyncClient(BaseClient):
    """A client for asyncio, with the arguments of `Client`."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int | None = None,
        on_retry: OnRetry | None = None,
        tls_ca_file: Path | str | None = None,
        tls_cert_file: Path | str | None = None,
        tls_key_file: Path | str | None = None,
        tls_server_name: str | None = None,
    ) -> None:
        channel = open_channel(
            grpc.aio,
            server,
            tls_ca_file=tls_ca_file,
            tls_cert_file=tls_cert_file,
            tls_key_file=tls_key_file,
            tls_server_name=tls_server_name,
        )
        super().__init__(channel, token=token, timeout_s=timeout_s, attempts=attempts, on_retry=on_retry)

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
        return decode_single(await self._send(encode_request([encode_image(image)], model, top_k), timeout_s))

    async def classify_all(
        self,
        images: Iterable[ClientImage],
        *,
        model: str,
        top_k: int = 0,
        timeout_s: float | None = None,
        images_per_request: int = 32,
    ) -> list[Prediction | ImageFailure]:
        """Classify any number of images; return one result per image, in order; see `Client.classify_all`."""
        results: list[Result] = []
        for chunk in chunks(images, images_per_request):
            results += await self._classify_chunk(chunk, model, top_k, timeout_s)
        return results

    async def classify_stream(
        self,
        images: Iterable[ClientImage] | AsyncIterable[ClientImage],
        *,
        model: str,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Prediction | ImageFailure, None]:
        """Classify images over one stream, from an iterable of either kind; see `Client.classify_stream`."""
        stream, retries = ImageStream(images, model, top_k), self._stream_retries(timeout_s)
        try:
            while True:
                call = self._classify_stream(
                    stream.requests_async(), timeout=retries.deadline_s, metadata=self._metadata
                )
                try:
                    async for response in call:
                        retries.note_progress()
                        for failure in stream.failures():
                            yield failure
                        result = stream.match(response)
                        if isinstance(result, pb.ClassifyRequest):
                            result = decode_single(await self._send(result, retries.deadline_s))
                        yield result
                except grpc.RpcError as error:
                    reason = await self._find_cause(decode_error(error), stream)
                else:
                    if stream.is_complete:
                        break
                    reason = stream.ended_early()
                finally:
                    call.cancel()
                await asyncio.sleep(retries.pause_s(reason))
        finally:
            await stream.close()
        for failure in stream.failures():
            yield failure
        if stream.error is not None:
            raise stream.error

    async def wait_ready(self, model: str = "", *, timeout_s: float = DEFAULT_WAIT_S) -> None:
        """Wait until the server or a model is ready; see `Client.wait_ready`."""
        call, request = self._readiness(model)
        retries = Retries(timeout_s, on_retry=self._on_retry)
        reason = ""
        while not (await self._attempt(call, request, retries)).ready:
            reason = (await self._why_not_ready(request, retries) if model else "") or reason
            await asyncio.sleep(retries.pause_s(not_ready(model, reason)))

    async def _why_not_ready(self, request: Any, retries: Retries) -> str:  # noqa: ANN401 - untyped library
        """Ask once why a model is not ready; see `Client._why_not_ready`."""
        once = Retries(retries.left_s, attempts=1)
        try:
            await self._attempt(self._model_metadata, metadata_request(request), once)
        except CallFailed as refusal:
            return reason_of(refusal)
        return ""

    async def _find_cause(self, failure: CallFailed, stream: ImageStream) -> CallFailed:
        """Repeat the oldest request: grpc.aio loses the status of a stream that ends during a send."""
        if failure.message != _LOST_STATUS:
            return failure
        if (request := stream.oldest_request()) is not None:
            try:
                await self._attempt(self._classify, request, Retries(self._timeout_s, attempts=1))
            except CallFailed as reason:
                return reason
        return stream.ended_early()

    async def _classify_chunk(
        self, chunk: Chunk, model: str, top_k: int, timeout_s: float | None
    ) -> list[Result]:
        if not chunk.images:
            return chunk.results(None)
        try:
            return chunk.results(await self._send(encode_request(chunk.images, model, top_k), timeout_s))
        except CallFailed as error:
            return chunk.results(error)

    async def _send(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        response: pb.ClassifyResponse = await self._attempt(self._classify, request, self._retries(timeout_s))
        return response

    async def _attempt(self, call: Any, request: Any, retries: Retries) -> Any:  # noqa: ANN401 - any method
        """Call until an attempt succeeds."""
        while True:
            try:
                return await call(request, timeout=retries.left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                await asyncio.sleep(retries.pause_s(decode_error(error)))
