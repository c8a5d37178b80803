"""The Python client: images as bytes, paths, numpy arrays or PIL images in, ranked labels out.

    with Client("127.0.0.1:8001") as client:
        print(client.classify("digit.png", model="lenet5-digits", top_k=3).top)

Retries are gRPC's own (service config, gRFC A6): with growing pauses on UNAVAILABLE and RESOURCE_EXHAUSTED,
never beyond the deadline. `AsyncClient` is the same with `await`.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image as PilImage
from PIL import ImageOps

from serving.errors import ImageError, InvalidPixels, InvalidRequest, LenserveError, UndecodableImage
from serving.pb.lenserve.v1 import classifier_pb2 as pb

DEFAULT_SERVER = "127.0.0.1:8001"
DEFAULT_TIMEOUT_S = 30.0

ClientImage = bytes | str | os.PathLike[str] | npt.NDArray[np.uint8] | PilImage.Image

_METHOD = "/lenserve.v1.Classifier/Classify"
_MAX_REQUEST_BYTES = 32 * 2**20  # half of what a server takes by default
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA")  # what raw pixels can say
_PNG_MODES = ("1", "L", "P", "RGB", "I;16")  # with a transparent colour, which TIFF would lose
_IMAGE_REASONS = frozenset(kind("").reason for kind in ImageError.__subclasses__())


@dataclass(frozen=True, slots=True)
class Label:
    """One label of an image."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The labels of one image, most probable first, and who said so."""

    model: str
    version: int
    labels: tuple[Label, ...]

    @property
    def top(self) -> Label:
        """The most probable label."""
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why one image of several has no labels."""

    code: str  # a gRPC status code's name
    reason: str
    message: str


class CallFailed(LenserveError):
    """The server refused or failed a call, or nobody answered."""

    def __init__(self, code: str, message: str, *, cause: str = "", request_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.cause = cause  # machine-readable, such as UNKNOWN_MODEL
        self.request_id = request_id


class Client:
    """A connection to a server. Threads may share one."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int = 5,
    ) -> None:
        self._timeout_s = timeout_s
        self._metadata = _metadata(token)
        self._channel = grpc.insecure_channel(server, options=_channel_options(attempts))
        self._call = self._channel.unary_unary(
            _METHOD, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )

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
        request = _request([encode_image(image)], model, top_k)
        return _only(_decode(self._send(request, timeout_s)))

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
        for chunk in _chunks(images, images_per_request):
            sendable = [each for each in chunk if isinstance(each, pb.Image)]
            results: list[Prediction | ImageFailure] = []
            try:
                if sendable:
                    results = _decode(self._send(_request(sendable, model, top_k), timeout_s))
            except CallFailed as error:
                results = [_failure_of_one(sendable, error)]
            yield from _in_place(chunk, results)

    def _send(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        try:
            response: pb.ClassifyResponse = self._call(
                request, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _call_failed(error) from error
        return response


class AsyncClient:
    """A connection to a server, for asyncio."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int = 5,
    ) -> None:
        self._timeout_s = timeout_s
        self._metadata = _metadata(token)
        self._channel = grpc.aio.insecure_channel(server, options=_channel_options(attempts))
        self._call = self._channel.unary_unary(
            _METHOD, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )

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
        request = _request([encode_image(image)], model, top_k)
        return _only(_decode(await self._send(request, timeout_s)))

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
        results: list[Prediction | ImageFailure] = []
        for chunk in _chunks(images, images_per_request):
            sendable = [each for each in chunk if isinstance(each, pb.Image)]
            answers: list[Prediction | ImageFailure] = []
            try:
                if sendable:
                    answers = _decode(await self._send(_request(sendable, model, top_k), timeout_s))
            except CallFailed as error:
                answers = [_failure_of_one(sendable, error)]
            results += _in_place(chunk, answers)
        return results

    async def _send(self, request: pb.ClassifyRequest, timeout_s: float | None) -> pb.ClassifyResponse:
        try:
            response: pb.ClassifyResponse = await self._call(
                request, timeout=self._timeout_s if timeout_s is None else timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise _call_failed(error) from error
        return response


def encode_image(image: ClientImage) -> pb.Image:
    """Put an image into a message.

    Raises:
        ImageError: its file cannot be read, or its pixels are none.
        InvalidRequest: it is of no type that is taken.
    """
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    if isinstance(image, (str, os.PathLike)):
        try:
            return pb.Image(encoded=Path(image).read_bytes())
        except OSError as error:
            raise UndecodableImage(f"{image} cannot be read: {error.strerror}") from error
    if isinstance(image, PilImage.Image):
        return _encode_pil(image)
    if isinstance(image, np.ndarray):
        return _encode_pixels(image)
    raise InvalidRequest(
        f"{type(image).__name__} is no image: expected bytes, a path, an array or a PIL image"
    )


def _encode_or_tell(image: ClientImage) -> pb.Image | ImageFailure:
    try:
        return encode_image(image)
    except ImageError as error:
        return ImageFailure("INVALID_ARGUMENT", error.reason, str(error))


def _encode_pil(image: PilImage.Image) -> pb.Image:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _PLAIN_MODES and "transparency" not in upright.info:
            return _encode_pixels(np.asarray(upright))
        buffer = io.BytesIO()
        if upright.mode in _PNG_MODES:
            upright.save(buffer, "PNG", compress_level=1)
        else:
            upright.save(buffer, "TIFF", compression=None)  # else the one it came with, and that may be JPEG
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises, lazily, on broken files
        raise UndecodableImage(f"the PIL image cannot be read: {error}") from error
    return pb.Image(encoded=buffer.getvalue())


def _encode_pixels(pixels: npt.NDArray[Any]) -> pb.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise InvalidPixels(
            f"pixels are {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, width, 1..4]"
        )
    height, width, channels = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)  # noqa: PLR2004 - (H, W, C)
    return pb.Image(pixels=pb.Pixels(height=height, width=width, channels=channels, data=pixels.tobytes()))


def _request(images: Sequence[pb.Image], model: str, top_k: int) -> pb.ClassifyRequest:
    name, _, revision = model.partition("@")
    request = pb.ClassifyRequest(model=name, images=images, top_k=top_k)
    if revision.isascii() and revision.isdigit():
        request.version = int(revision)
    elif revision:
        request.alias = revision
    return request


def _decode(response: pb.ClassifyResponse) -> list[Prediction | ImageFailure]:
    return [_decode_prediction(prediction, response) for prediction in response.predictions]


def _decode_prediction(prediction: pb.Prediction, response: pb.ClassifyResponse) -> Prediction | ImageFailure:
    if prediction.HasField("error"):
        error = prediction.error
        return ImageFailure(_code_name(error.code), error.reason, error.message)
    labels = tuple(Label(each.label, each.index, each.probability) for each in prediction.ranking.labels)
    return Prediction(response.model, response.version, labels)


def _only(results: Sequence[Prediction | ImageFailure]) -> Prediction:
    if len(results) != 1 or isinstance(results[0], ImageFailure):
        raise CallFailed("INTERNAL", f"the server gave {results} for one image. This is a bug.")
    return results[0]


def _failure_of_one(images: Sequence[pb.Image], error: CallFailed) -> ImageFailure:
    """A request of one image fails as that image does; any other failure is the call's."""
    if len(images) == 1 and error.cause in _IMAGE_REASONS:
        return ImageFailure(error.code, error.cause, error.message)
    raise error


def _in_place(
    chunk: Sequence[pb.Image | ImageFailure], results: Sequence[Prediction | ImageFailure]
) -> list[Prediction | ImageFailure]:
    """Join what could not be sent with the results of what was, in order."""
    rest = iter(results)
    joined = [each if isinstance(each, ImageFailure) else next(rest, None) for each in chunk]
    complete = [each for each in joined if each is not None]
    if len(complete) != len(chunk) or next(rest, None) is not None:
        raise CallFailed(
            "INTERNAL", f"the server gave {len(results)} results for other images. This is a bug."
        )
    return complete


def _chunks(images: Iterable[ClientImage], most: int) -> Iterator[list[pb.Image | ImageFailure]]:
    chunk: list[pb.Image | ImageFailure] = []
    chunk_bytes = 0
    for image in images:
        encoded = _encode_or_tell(image)
        size = encoded.ByteSize() if isinstance(encoded, pb.Image) else 0
        if chunk and (len(chunk) == most or chunk_bytes + size > _MAX_REQUEST_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(encoded)
        chunk_bytes += size
    if chunk:
        yield chunk


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _channel_options(attempts: int) -> list[tuple[str, Any]]:
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        # CANCELLED, when it comes from the server: it stopped before it looked at the call.
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
    }
    method = {"name": [{"service": "lenserve.v1.Classifier"}]} | (
        {"retryPolicy": policy} if attempts > 1 else {}
    )
    return [
        ("grpc.service_config", json.dumps({"methodConfig": [method]})),
        # Else the connection itself rests for a second after a refusal, longer than most of the attempts do.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # What is larger than this buffer is not sent again, and gRPC's default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 2 * _MAX_REQUEST_BYTES),
    ]


def _call_failed(error: Any) -> CallFailed:  # noqa: ANN401 - grpc ships no types
    cause, request_id = "", ""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            cause, request_id = info.reason, info.metadata.get("request_id", "")
    return CallFailed(error.code().name, error.details() or "no details", cause=cause, request_id=request_id)


def _code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))
