"""What the client sends and what it makes of the answers. Knows no connection: both clients share it."""

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

MAX_REQUEST_BYTES = 32 * 2**20  # half of what a server takes by default
# CANCELLED, when it comes from the server: it stopped before it looked at the call.
PASSING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED")

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


Result = Prediction | ImageFailure


def encode_request(images: Sequence[pb.Image], model: str, top_k: int) -> pb.ClassifyRequest:
    """Put images into a request. `model` is MODEL, MODEL@VERSION or MODEL@ALIAS."""
    name, _, revision = model.partition("@")
    request = pb.ClassifyRequest(model=name, images=images, top_k=top_k)
    if revision.isascii() and revision.isdigit():
        request.version = int(revision)
    elif revision:
        request.alias = revision
    return request


def decode_only(response: pb.ClassifyResponse) -> Prediction:
    """The answer to a request of one image."""
    results = _decode(response)
    if len(results) != 1 or isinstance(results[0], ImageFailure):
        raise CallFailed("INTERNAL", f"the server gave {results} for one image. This is a bug.")
    return results[0]


def decode_error(error: Any) -> CallFailed:  # noqa: ANN401 - grpc ships no types
    """What a grpc.RpcError says."""
    cause, request_id = "", ""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            cause, request_id = info.reason, info.metadata.get("request_id", "")
    return CallFailed(error.code().name, error.details() or "no details", cause=cause, request_id=request_id)


class Chunk:
    """Some images that travel in one request. Those that cannot be sent have a failure in their places."""

    def __init__(self) -> None:
        self._entries: list[pb.Image | ImageFailure] = []
        self._bytes = 0

    def add(self, image: pb.Image | ImageFailure, most: int) -> bool:
        """Take one more image, unless they are `most` already or too many bytes."""
        size = image.ByteSize() if isinstance(image, pb.Image) else 0
        if self._entries and (len(self._entries) == most or self._bytes + size > MAX_REQUEST_BYTES):
            return False
        self._entries.append(image)
        self._bytes += size
        return True

    @property
    def images(self) -> list[pb.Image]:
        """Those to send."""
        return [each for each in self._entries if isinstance(each, pb.Image)]

    def results(self, outcome: pb.ClassifyResponse | CallFailed | None) -> list[Result]:
        """All results in order, from what came back for `images`; None where nothing had to be sent.

        Raises:
            CallFailed: the failure is not that of the only image.
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
                f"the server gave {len(results)} results for {len(self.images)} images. This is a bug.",
            )
        rest = iter(results)
        return [each if isinstance(each, ImageFailure) else next(rest) for each in self._entries]


def chunks(images: Iterable[ClientImage], most: int) -> Iterator[Chunk]:
    """Share images out to requests, reading no further than the next request needs."""
    chunk: Chunk | None = None
    for image in images:
        encoded = _encode_or_tell(image)
        if chunk is None or not chunk.add(encoded, most):
            if chunk is not None:
                yield chunk
            chunk = Chunk()
            chunk.add(encoded, most)
    if chunk is not None:
        yield chunk


class Exchange:
    """One stream of images and results, in order. Sending and receiving may happen in two threads."""

    def __init__(self, model: str, top_k: int) -> None:
        self._model = model
        self._top_k = top_k
        self._open: deque[pb.Image | ImageFailure] = deque()  # sent, or failed before, and not yet settled
        self.error: Exception | None = None  # that the images themselves ended in

    def take(self, image: ClientImage) -> pb.ClassifyRequest | None:
        """The request to send for an image; None where it cannot be sent, and has a failure in its place."""
        encoded = _encode_or_tell(image)
        self._open.append(encoded)
        if isinstance(encoded, ImageFailure):
            return None
        return encode_request([encoded], self._model, self._top_k)

    def oldest_request(self) -> pb.ClassifyRequest | None:
        """What was sent and is not settled for the longest time."""
        images = [each for each in self._open if isinstance(each, pb.Image)]
        return encode_request(images[:1], self._model, self._top_k) if images else None

    def failures(self) -> Iterator[ImageFailure]:
        """Those that come before the next answer."""
        while self._open and isinstance(failure := self._open[0], ImageFailure):
            self._open.popleft()
            yield failure

    def settle(self, response: pb.ClassifyStreamResponse) -> Result | pb.Image:
        """The result of the oldest image that was sent, or that image where it is worth asking again.

        Raises:
            CallFailed: it failed for a reason that the next image would fail for too.
        """
        image = self._open.popleft()
        if response.HasField("response"):
            (result,) = _decode(response.response)
            return result
        error = response.error
        code = _code_name(error.code)
        if error.reason in _IMAGE_REASONS:
            return ImageFailure(code, error.reason, error.message)
        if code in PASSING and isinstance(image, pb.Image):
            return image
        raise CallFailed(code, error.message, cause=error.reason)


def _encode_or_tell(image: ClientImage) -> pb.Image | ImageFailure:
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
