"""inference.GRPCInferenceService: the Open Inference Protocol, for clients of Triton and KServe.

Tensors are decoded and encoded in open_inference/tensors.py.
"""

from collections.abc import Sequence

import numpy as np

from serving import __version__
from serving.bundle import MANIFEST_FILE
from serving.classify.classifier import Classifier
from serving.errors import InvalidTensor, ModelUnavailable, UnknownModel
from serving.metrics.recorder import Metrics
from serving.models.registry import Models
from serving.models.versions import Revision
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference import tensors
from serving.rpc.open_inference.model_config import PLATFORM, input_dims, model_config
from serving.rpc.open_inference.parameters import decode_scheduling
from serving.rpc.open_inference.requests import InferRequest, RequestReader
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.open_inference.statistics import model_statistics
from serving.rpc.open_inference.wire import tag_and_length
from serving.rpc.routes import AdmitNamed, Call, Pipeline, Rpc, Unary
from serving.rpc.status import Status

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "binary_tensor_data",
    "parameters",
    "statistics",
)

_STATISTICS_US = 20  # of one model, about: at least 6 us to compute and 11 us to encode
_INFER_RESPONSE = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
# Clients of streams wait for the response that is marked as the final one of a request.
_LAST: bytes = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()


class InferenceService:
    """Serves the health, metadata, statistics and inference methods."""

    def __init__(self, classifier: Classifier, models: Models, metrics: Metrics, regions: Regions) -> None:
        self._classifier = classifier
        self._models = models
        self._metrics = metrics
        self._regions = regions
        self._requests = RequestReader(classifier.max_images)

    def rpcs(self) -> Sequence[Rpc]:
        """The RPCs of this service."""
        prefix = f"/{SERVICE}"
        return (
            Unary(f"{prefix}/ServerLive", pb.ServerLiveRequest, self.server_live, is_probe=True),
            Unary(f"{prefix}/ServerReady", pb.ServerReadyRequest, self.server_ready, is_probe=True),
            Unary(f"{prefix}/ModelReady", pb.ModelReadyRequest, self.model_ready, model_field="name"),
            Unary(f"{prefix}/ServerMetadata", pb.ServerMetadataRequest, self.server_metadata),
            Unary(
                f"{prefix}/ModelMetadata", pb.ModelMetadataRequest, self.model_metadata, model_field="name"
            ),
            Unary(f"{prefix}/ModelConfig", pb.ModelConfigRequest, self.model_config, model_field="name"),
            Unary(
                f"{prefix}/ModelStatistics",
                pb.ModelStatisticsRequest,
                self.model_statistics,
                model_field="name",
            ),
            Unary(
                f"{prefix}/ModelInfer",
                pb.ModelInferRequest,
                self.model_infer,
                model_field="model_name",
                parse=self._requests.read,
                admit=self._classifier.admission.check,
                admit_named=AdmitNamed(self.check_admission, pb.ModelInferRequest.INPUTS_FIELD_NUMBER),
            ),
            Pipeline(
                f"{prefix}/ModelStreamInfer",
                pb.ModelInferRequest,
                self.model_infer_in_stream,
                _refuse,
                model_field="model_name",
                parse=self._requests.read,
            ),
        )

    async def server_live(self, _request: pb.ServerLiveRequest, _call: Call) -> pb.ServerLiveResponse:
        """Return whether the process works. If not, it should be restarted."""
        return pb.ServerLiveResponse(live=not self._models.broken)

    async def server_ready(self, _request: pb.ServerReadyRequest, _call: Call) -> pb.ServerReadyResponse:
        """Return whether the server can answer requests."""
        return pb.ServerReadyResponse(ready=self._models.ready)

    async def model_ready(self, request: pb.ModelReadyRequest, _call: Call) -> pb.ModelReadyResponse:
        """Return whether a version can answer. An unknown model is not ready, without an error."""
        try:
            self._classifier.describe(request.name, _revision(request.version))
        except (UnknownModel, ModelUnavailable):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(
        self, _request: pb.ServerMetadataRequest, _call: Call
    ) -> pb.ServerMetadataResponse:
        """Return name and version of the server, and the protocol extensions that it supports."""
        extensions = (*EXTENSIONS, "system_shared_memory") if self._regions.enabled else EXTENSIONS
        return pb.ServerMetadataResponse(name="lenserve", version=__version__, extensions=extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, _call: Call) -> pb.ModelMetadataResponse:
        """Return the tensors and the served versions of a model."""
        number, manifest = self._classifier.describe(request.name, _revision(request.version))
        served = (
            [str(number)]
            if request.version
            else [str(each) for each in sorted(self._models.get(request.name).versions)]
        )
        metadata = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=served,
            platform=PLATFORM,
            inputs=[metadata(name=tensors.INPUT, datatype="UINT8", shape=[-1, *input_dims(manifest)])],
            # Requests can also name the output `embedding`. It is not listed, because Triton's example
            # clients for classification reject models with more than one output.
            outputs=[metadata(name=tensors.PROBABILITIES, datatype="FP32", shape=[-1, len(manifest.labels)])],
            properties={
                "encoded_images": "the input also accepts BYTES of shape [-1]: one JPEG, PNG, ... file each",
                "embedding": f"FP32 [-1, {manifest.embedding_size}], if the request names this output",
                "recipe": manifest.provenance.recipe,
                "recipe_digest": manifest.provenance.recipe_digest,
            },
        )

    async def model_config(self, request: pb.ModelConfigRequest, _call: Call) -> pb.ModelConfigResponse:
        """Return the part of Triton's model configuration that its clients read."""
        _, manifest = self._classifier.describe(request.name, _revision(request.version))
        config = model_config(
            request.name,
            manifest,
            max_batch_size=self._classifier.max_images,
            label_file=MANIFEST_FILE,  # it holds them, and clients only show the name
        )
        return pb.ModelConfigResponse(config=config)

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, call: Call
    ) -> pb.ModelStatisticsResponse:
        """Return counts and durations of one model, or of all that the call may see."""
        names = [request.name] if request.name else list(filter(call.allows, self._models.names()))
        await self._classifier.turns.take(_STATISTICS_US * len(names))
        statistics = model_statistics(
            self._models, self._metrics, names=names, revision=_revision(request.version)
        )
        return pb.ModelStatisticsResponse(model_stats=statistics)

    def check_admission(self, request: pb.ModelInferRequest, call: Call) -> None:
        """Raise an error if a request without its tensors cannot be admitted now."""
        revision = _revision(request.model_version)
        self._classifier.check_admission(request.model_name, revision, call.deadline_s)

    async def model_infer(self, request: InferRequest, call: Call, *, may_wait: bool = False) -> bytes:
        """Run a uint8 tensor or encoded images, and return probabilities, embeddings or classes."""
        regions = self._regions if call.grant is None else self._regions.of(call.owner)
        images, outputs = request.decode(regions)
        deadline_s, priority = decode_scheduling(request, call.deadline_s)
        model, revision = request.model_name, _revision(request.model_version)
        if isinstance(images, np.ndarray):
            infer = self._classifier.infer_tensor(
                images,
                model=model,
                revision=revision,
                deadline_s=deadline_s,
                priority=priority,
                may_wait=may_wait,
            )
        else:
            infer = self._classifier.infer(
                images,
                model=model,
                revision=revision,
                deadline_s=deadline_s,
                priority=priority,
                may_wait=may_wait,
            )
        inference = await infer
        if outputs == tensors.DEFAULT_OUTPUTS and not request.id:
            return tensors.encode_probabilities(inference)
        return await tensors.encode_response(inference, outputs, request.id, regions, self._classifier.turns)

    async def model_infer_in_stream(self, request: InferRequest, call: Call) -> bytes:
        """Answer one request of a stream."""
        response = await self.model_infer(request, call, may_wait=True)
        return b"".join((tag_and_length(_INFER_RESPONSE, len(response) + len(_LAST)), response, _LAST))


def _refuse(request: InferRequest, status: Status) -> pb.ModelStreamInferResponse:
    response = pb.ModelStreamInferResponse(error_message=status.message)
    response.infer_response.id = request.id  # tells the client which request failed
    return response


def _revision(text: str) -> Revision:
    if not text:
        return None
    if text.isascii() and text.isdigit():
        if len(text) > 18:  # noqa: PLR2004 - so that it fits into 64 bits
            raise InvalidTensor(f"version {text[:32]} is not a version number")
        return int(text)
    return text
