"""lenserve.v1.Classifier: the native API, images in, ranked labels out."""

from collections.abc import Sequence

import numpy as np

from serving.bundle.images import Pixels
from serving.classify.classifier import Classifier
from serving.classify.preprocessing import Image
from serving.classify.results import LABELS_PER_SLICE, Failure, Ranking, row_slices
from serving.errors import EmptyImage, ImageError, InvalidPixels, forget_frames
from serving.models.versions import Revision
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.field_limit import limited_parser, max_fields_of
from serving.rpc.routes import AdmitNamed, Call, Pipeline, Rpc, Unary
from serving.rpc.status import Status, code_of
from serving.turns import LARGE_BYTES, copy_us

SERVICE = pb.DESCRIPTOR.services_by_name["Classifier"].full_name


class ClassifierService:
    """Serves lenserve.v1.Classifier."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._parse = limited_parser(pb.ClassifyRequest, max_fields_of(classifier.max_images))

    def rpcs(self) -> Sequence[Rpc]:
        """The RPCs of this service."""
        return (
            Unary(
                f"/{SERVICE}/Classify",
                pb.ClassifyRequest,
                self.classify,
                model_field="model",
                parse=self._parse,
                admit=self._classifier.admission.check,
                admit_named=AdmitNamed(self.check_admission, pb.ClassifyRequest.IMAGES_FIELD_NUMBER),
            ),
            Pipeline(
                f"/{SERVICE}/ClassifyStream",
                pb.ClassifyRequest,
                self.classify_in_stream,
                _refuse,
                model_field="model",
                parse=self._parse,
            ),
        )

    def check_admission(self, request: pb.ClassifyRequest, call: Call) -> None:
        """Raise an error if a request without its images cannot be admitted now."""
        self._classifier.check_admission(request.model, _revision(request), call.deadline_s)

    async def classify(self, request: pb.ClassifyRequest, call: Call) -> pb.ClassifyResponse:
        """Rank the labels of each image. If the only image is invalid, the request fails."""
        response = pb.ClassifyResponse()
        work = self._classify(request, call, response)
        del request  # see `_classify`
        await work
        return response

    async def classify_in_stream(self, request: pb.ClassifyRequest, call: Call) -> pb.ClassifyStreamResponse:
        """Answer one request of a stream."""
        response = pb.ClassifyStreamResponse(id=request.id)
        work = self._classify(request, call, response.response, may_wait=True)
        del request
        await work
        return response

    async def _decode_images(self, request: pb.ClassifyRequest) -> list[Image]:
        """Copy the images out of the request, not too many bytes in one turn of the event loop."""
        images: list[Image] = []
        copied_bytes = 0
        for image in request.images:
            if copied_bytes > LARGE_BYTES:
                await self._classifier.turns.take(copy_us(copied_bytes))
                copied_bytes = 0
            decoded = _decode_image(image)
            copied_bytes += _size_bytes(decoded)
            images.append(decoded)
        return images

    async def _classify(
        self,
        request: pb.ClassifyRequest,
        call: Call,
        response: pb.ClassifyResponse,
        *,
        may_wait: bool = False,
    ) -> None:
        self._classifier.check_count(len(request.images))  # before they are decoded
        images = await self._decode_images(request)
        work = self._classifier.classify(
            images,
            model=request.model,
            revision=_revision(request),
            top_k=request.top_k,
            deadline_s=call.deadline_s,
            may_wait=may_wait,
        )
        # The images are copies, and can wait for a second: without this they would be held three times.
        del request, images
        answer = await work
        if len(answer.results) == 1 and isinstance(answer.results[0], Failure):
            raise answer.results[0]
        response.model = answer.model
        response.version = answer.version
        labels = max(map(_labels_of, answer.results))
        if len(answer.results) * labels <= LABELS_PER_SLICE:
            _encode_results(answer.results, response)
            return
        for part in row_slices(len(answer.results), labels):
            await self._classifier.turns.take(len(answer.results[part]) * labels)
            _encode_results(answer.results[part], response)


def _revision(request: pb.ClassifyRequest) -> Revision:
    kind = request.WhichOneof("revision")
    return getattr(request, kind) if kind else None


def _decode_image(image: pb.Image) -> Image:
    kind = image.WhichOneof("content")
    if kind == "pixels":
        try:
            return _decode_pixels(image.pixels)
        except ImageError as error:
            forget_frames(error)  # a result, not a failure
            return error
    return image.encoded if kind else EmptyImage("the image is empty: neither encoded bytes nor pixels")


def _decode_pixels(pixels: pb.Pixels) -> Pixels:
    shape = (pixels.height, pixels.width, pixels.channels)
    if min(shape) < 1:
        raise InvalidPixels(f"height, width and channels are {list(shape)}, expected at least 1 each")
    expected = pixels.height * pixels.width * pixels.channels
    if len(pixels.data) != expected:
        raise InvalidPixels(
            f"pixels have {len(pixels.data)} bytes, expected {expected} for the shape {list(shape)}"
        )
    return np.frombuffer(pixels.data, np.uint8).reshape(shape)  # (H, W, C)


def _size_bytes(image: Image) -> int:
    if isinstance(image, ImageError):
        return 0
    return image.nbytes if isinstance(image, np.ndarray) else len(image)


def _labels_of(result: Ranking | Failure) -> int:
    return 1 if isinstance(result, Failure) else len(result)


def _encode_results(results: Sequence[Ranking | Failure], response: pb.ClassifyResponse) -> None:
    for result in results:
        _encode_result(result, response.predictions.add())


def _encode_result(result: Ranking | Failure, prediction: pb.Prediction) -> None:
    """Fill in a prediction in place: a separate message would be copied."""
    if isinstance(result, Failure):
        error = prediction.error
        error.code, error.reason, error.message = code_of(result), result.reason, str(result)
        return
    add = prediction.ranking.labels.add
    for each in result:
        add(label=each.label, index=each.index, probability=each.probability)


def _refuse(request: pb.ClassifyRequest, status: Status) -> pb.ClassifyStreamResponse:
    error = pb.RequestError(code=status.code, reason=status.reason, message=status.message)
    return pb.ClassifyStreamResponse(id=request.id, error=error)
