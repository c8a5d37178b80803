"""Requests and results of both clients: encodes images, decodes responses. Does no I/O."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.client.images import ClientImage, encode_image
from serving.errors import ImageError, InvalidRequest, LenserveError
from serving.pb.lenserve.v1 import classifier_pb2 as pb

MAX_REQUEST_BYTES = 32 * 2**20  # the server's default limit is 36 MiB
# The server sends CANCELLED if it stops before a call has begun.
_TRANSIENT_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")
# The same request would fail again: it is too long, the sides do not trust each other, or this side gave up.
_PERMANENT_CAUSES = ("MESSAGE_TOO_LONG", "COMPRESSION_RATIO")
_PERMANENT = re.compile(
    r"message larger than max|CERTIFICATE_VERIFY_FAILED|Hostname Verification|"
    r"Channel closed|Locally cancelled",
    re.IGNORECASE,
)

_MAX_VERSION = 2**63 - 1  # int64
_MAX_TOP_K = 2**31 - 1  # int32

IMAGE_REASONS = frozenset(kind("").reason for kind in ImageError.__subclasses__())


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
        retry_after_s: how long the server asks its clients to wait; 0 if it does not.
    """

    def __init__(
        self, code: str, message: str, *, cause: str = "", request_id: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.cause = cause
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later."""
        if self.code not in _TRANSIENT_CODES or self.cause in _PERMANENT_CAUSES:
            return False
        return not _PERMANENT.search(self.message)


Result = Prediction | ImageFailure


def encode_request(images: Sequence[pb.Image], model: str, top_k: int) -> pb.ClassifyRequest:
    """Build a request. `model` is MODEL, MODEL@VERSION or MODEL@ALIAS; top_k 0 means the server's default.

    Raises:
        InvalidRequest: the version or top_k is out of range, or the model is not UTF-8 or ends with @.
    """
    if abs(top_k) > _MAX_TOP_K:  # int32; the server refuses negative ones
        raise InvalidRequest(f"top_k is {top_k}: choose a number from 0 to {_MAX_TOP_K}")
    name, revision = split_model(model)
    request = pb.ClassifyRequest(images=images, top_k=top_k)
    try:
        request.model = name
        if revision.isascii() and revision.isdigit():
            request.version = _version(revision)
        elif revision:
            request.alias = revision
    except UnicodeEncodeError as error:
        raise not_utf8(model) from error
    return request


def split_model(model: str) -> tuple[str, str]:
    """Return the name, and the version or alias, of MODEL, MODEL@VERSION or MODEL@ALIAS; "" without one.

    Raises:
        InvalidRequest: nothing follows the @, as of a variable that is not set.
    """
    name, at, revision = model.partition("@")
    if at and not revision:
        raise InvalidRequest(
            f"model {model!r} names no version or alias after the @: add it, or use {name!r}"
        )
    return name, revision


def not_utf8(model: str) -> InvalidRequest:
    """Return the error about the name of a model that no request can carry."""
    return InvalidRequest(f"model {model!r} is not text in UTF-8: name a model of the server")


def _version(digits: str) -> int:
    if len(digits) > len(str(_MAX_VERSION)) or int(digits) > _MAX_VERSION:
        raise InvalidRequest(f"version {digits} is out of range: the highest is {_MAX_VERSION}")
    return int(digits)


def decode_single(response: pb.ClassifyResponse) -> Prediction:
    """Return the prediction in the response to a request with one image."""
    results = decode(response)
    if len(results) != 1 or isinstance(results[0], ImageFailure):
        raise CallFailed("INTERNAL", f"the server returned {results} for one image. This is a bug.")
    return results[0]


def decode_error(error: Any) -> CallFailed:  # noqa: ANN401 - grpc ships no types
    """Convert a grpc.RpcError."""
    cause, request_id, retry_after_s = "", "", 0.0
    for detail in _details(error):
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            cause, request_id = info.reason, info.metadata.get("request_id", "")
        elif detail.Unpack(retry):
            retry_after_s = max(0.0, retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    details = error.details() or "no details"
    if details.startswith("failed to connect"):
        details += "; is this the server's address, and do both sides use TLS, or neither?"
    return CallFailed(
        error.code().name, details, cause=cause, request_id=request_id, retry_after_s=retry_after_s
    )


def _details(error: Any) -> Sequence[Any]:  # noqa: ANN401 - grpc ships no types
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # a proxy may have changed the status, or the details
        return ()
    return status.details if status else ()


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
            if len(self.images) != 1 or outcome.cause not in IMAGE_REASONS:
                raise outcome
            results: list[Result] = [ImageFailure(outcome.code, outcome.cause, outcome.message)]
        else:
            results = decode(outcome) if outcome is not None else []
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
        encoded = encode_or_fail(image)
        if chunk is None or not chunk.add(encoded, max_images):
            if chunk is not None:
                yield chunk
            chunk = Chunk()
            chunk.add(encoded, max_images)
    if chunk is not None:
        yield chunk


def encode_or_fail(image: ClientImage) -> pb.Image | ImageFailure:
    """Encode an image, or say why it cannot be."""
    try:
        return encode_image(image)
    except ImageError as error:
        return ImageFailure("INVALID_ARGUMENT", error.reason, str(error))


def decode(response: pb.ClassifyResponse) -> list[Result]:
    """Return one result per image."""
    return [_decode_prediction(prediction, response) for prediction in response.predictions]


def _decode_prediction(prediction: pb.Prediction, response: pb.ClassifyResponse) -> Result:
    if prediction.HasField("error"):
        error = prediction.error
        return ImageFailure(code_name(error.code), error.reason, error.message)
    labels = tuple(Label(each.label, each.index, each.probability) for each in prediction.ranking.labels)
    return Prediction(response.model, response.version, labels)


def code_name(number: int) -> str:
    """Return the name of a gRPC status code."""
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))
