"""Requests and results of both clients: encodes images, decodes responses. Does no I/O."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.client.images import ClientImage, encode_image
from serving.errors import ImageError, LenserveError
from serving.pb.lenserve.v1 import classifier_pb2 as pb

MAX_REQUEST_BYTES = 32 * 2**20  # half of the server's default limit
# The server sends CANCELLED if it stops before a call has begun.
RETRYABLE_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")

_IMAGE_REASONS = frozenset(kind("").reason for kind in ImageError.__subclasses__())


@dataclass(frozen=True, slots=True)
class Label:
    """One label of an image."""

    label: str
    index: int  # in the manifest's labels
    probability: float  # 0..1, calibrated


@dataclass(frozen=True, slots=True)
class Prediction:
    """The labels of one image, most probable first, and the version that predicted them."""

    model: str
    version: int
    labels: tuple[Label, ...]

    @property
    def top(self) -> Label:
        """The most probable label."""
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why one image has no labels."""

    code: str  # name of a gRPC status code, such as INVALID_ARGUMENT
    reason: str  # kind of error, such as IMAGE_TOO_LARGE
    message: str  # for humans


class CallFailed(LenserveError):
    """The server rejected or failed a call, or did not answer.

    Args:
        code: name of a gRPC status code, such as NOT_FOUND.
        message: the server's message.
        cause: kind of error, such as UNKNOWN_MODEL; empty if unknown.
        request_id: request id in the server's log; empty if unknown.
    """

    def __init__(self, code: str, message: str, *, cause: str = "", request_id: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.cause = cause
        self.request_id = request_id


Result = Prediction | ImageFailure


def encode_request(images: Sequence[pb.Image], model: str, top_k: int) -> pb.ClassifyRequest:
    """Build a request. `model` is MODEL, MODEL@VERSION or MODEL@ALIAS; top_k 0 means the server's default."""
    name, _, revision = model.partition("@")
    request = pb.ClassifyRequest(model=name, images=images, top_k=top_k)
    if revision.isascii() and revision.isdigit():
        request.version = int(revision)
    elif revision:
        request.alias = revision
    return request


def decode_single(response: pb.ClassifyResponse) -> Prediction:
    """Return the prediction in the response to a request with one image."""
    results = _decode(response)
    if len(results) != 1 or isinstance(results[0], ImageFailure):
        raise CallFailed("INTERNAL", f"the server returned {results} for one image. This is a bug.")
    return results[0]


def decode_error(error: Any) -> CallFailed:  # noqa: ANN401 - grpc ships no types
    """Convert a grpc.RpcError."""
    cause, request_id = "", ""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            cause, request_id = info.reason, info.metadata.get("request_id", "")
    details = error.details() or "no details"
    if details.startswith("failed to connect"):
        details += "; is this the server's address, and do both sides use TLS, or neither?"
    return CallFailed(error.code().name, details, cause=cause, request_id=request_id)


class Chunk:
    """The images of one request, in order. An image that cannot be encoded is replaced by its failure."""

    def __init__(self) -> None:
        self._entries: list[pb.Image | ImageFailure] = []
        self._bytes = 0

    def add(self, image: pb.Image | ImageFailure, max_images: int) -> bool:
        """Add an image and return True, or return False if that would exceed `max_images` or 32 MiB."""
        size = image.ByteSize() if isinstance(image, pb.Image) else 0
        if self._entries and (len(self._entries) == max_images or self._bytes + size > MAX_REQUEST_BYTES):
            return False
        self._entries.append(image)
        self._bytes += size
        return True

    @property
    def images(self) -> list[pb.Image]:
        """The images to send."""
        return [each for each in self._entries if isinstance(each, pb.Image)]

    def results(self, outcome: pb.ClassifyResponse | CallFailed | None) -> list[Result]:
        """Return one result per entry, in order.

        Args:
            outcome: result of the request with `images`; None if there was nothing to send.

        Raises:
            CallFailed: the request failed for another reason than an invalid image.
        """
        if isinstance(outcome, CallFailed):
            if len(self.images) != 1 or outcome.cause not in _IMAGE_REASONS:
                raise outcome
            results: list[Result] = [ImageFailure(outcome.code, outcome.cause, outcome.message)]
        else:
            results = _decode(outcome) if outcome is not None else []
        if len(results) != len(self.images):
            raise CallFailed(
                "INTERNAL",
                f"the server returned {len(results)} results for {len(self.images)} images. This is a bug.",
            )
        rest = iter(results)
        return [each if isinstance(each, ImageFailure) else next(rest) for each in self._entries]


def chunks(images: Iterable[ClientImage], max_images: int) -> Iterator[Chunk]:
    """Divide images into requests. Reads ahead no further than the next request needs."""
    chunk: Chunk | None = None
    for image in images:
        encoded = _encode_or_fail(image)
        if chunk is None or not chunk.add(encoded, max_images):
            if chunk is not None:
                yield chunk
            chunk = Chunk()
            chunk.add(encoded, max_images)
    if chunk is not None:
        yield chunk


class ImageStream:
    """Matches a stream's images with their results, in order. One thread may send while another receives."""

    def __init__(self, model: str, top_k: int) -> None:
        self._model = model
        self._top_k = top_k
        self._open: deque[pb.Image | ImageFailure] = deque()  # sent or failed, without a result yet
        self.error: Exception | None = None  # raised by the caller's iterable

    def encode(self, image: ClientImage) -> pb.ClassifyRequest | None:
        """Return the request for the next image; None, and a failure as its result, if encoding fails."""
        encoded = _encode_or_fail(image)
        self._open.append(encoded)
        if isinstance(encoded, ImageFailure):
            return None
        return encode_request([encoded], self._model, self._top_k)

    def oldest_request(self) -> pb.ClassifyRequest | None:
        """Return the oldest request without a result; None if there is none."""
        images = [each for each in self._open if isinstance(each, pb.Image)]
        return encode_request(images[:1], self._model, self._top_k) if images else None

    def failures(self) -> Iterator[ImageFailure]:
        """Yield the failures that precede the next response."""
        while self._open and isinstance(failure := self._open[0], ImageFailure):
            self._open.popleft()
            yield failure

    def match(self, response: pb.ClassifyStreamResponse) -> Result | pb.Image:
        """Return the result of the oldest image, or the image if it should be sent again.

        Raises:
            CallFailed: the image failed for a reason that affects all, such as an unknown model.
        """
        image = self._open.popleft()
        if response.HasField("response"):
            (result,) = _decode(response.response)
            return result
        error = response.error
        code = _code_name(error.code)
        if error.reason in _IMAGE_REASONS:
            return ImageFailure(code, error.reason, error.message)
        if code in RETRYABLE_CODES and isinstance(image, pb.Image):
            return image
        raise CallFailed(code, error.message, cause=error.reason)


def _encode_or_fail(image: ClientImage) -> pb.Image | ImageFailure:
    try:
        return encode_image(image)
    except ImageError as error:
        return ImageFailure("INVALID_ARGUMENT", error.reason, str(error))


def _decode(response: pb.ClassifyResponse) -> list[Result]:
    return [_decode_prediction(prediction, response) for prediction in response.predictions]


def _decode_prediction(prediction: pb.Prediction, response: pb.ClassifyResponse) -> Result:
    if prediction.HasField("error"):
        error = prediction.error
        return ImageFailure(_code_name(error.code), error.reason, error.message)
    labels = tuple(Label(each.label, each.index, each.probability) for each in prediction.ranking.labels)
    return Prediction(response.model, response.version, labels)


def _code_name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))
