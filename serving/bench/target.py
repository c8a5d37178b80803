"""The server and the encoded requests of a benchmark. Every request must succeed once before a load."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from serving.client.address import server_address
from serving.client.connection import channel_options, sendable_token
from serving.client.images import encode_image
from serving.client.messages import CallFailed, encode_request, split_model
from serving.pb.inference import grpc_service_pb2 as inference_pb
from serving.pb.lenserve.v1 import classifier_pb2 as pb

METHOD = "/lenserve.v1.Classifier/Classify"
_METADATA_METHOD = "/inference.GRPCInferenceService/ModelMetadata"
_FIRST_TIMEOUT_S = 10.0
_TOP_K = 1


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the requests to send, pickled for the worker processes."""

    server: str  # HOST:PORT, for gRPC
    requests: tuple[bytes, ...]  # encoded; sent round-robin
    timeout_s: float
    token: str | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of each request."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def prepare(
    server: str, model: str, images: Sequence[Path], *, timeout_s: float, token: str | None = None
) -> tuple[Target, pb.ClassifyResponse]:
    """Encode the requests and send each once; return the target and the last response.

    Without images, the request is noise in the network's input size, so that nothing is decoded or resized.

    Raises:
        UsageError: the address is invalid.
        InvalidRequest: the model cannot be named so.
        ImageError: an image file cannot be read.
        CallFailed: the server does not answer, or rejects the model or an image.
    """
    encode_request([], model, _TOP_K)  # checks the model's name
    target = Target(server_address(server), (), timeout_s, token and sendable_token(token))
    with grpc.insecure_channel(target.server, options=channel_options(target.server)) as channel:
        contents = [encode_image(each) for each in images]
        if not contents:
            contents = [encode_image(_noise(_input_shape(channel, target, model)))]
        messages = [encode_request([each], model, _TOP_K) for each in contents]
        for message in messages:
            answer = _call(channel, METHOD, target, message, pb.ClassifyResponse)
    requests = tuple(message.SerializeToString() for message in messages)
    return replace(target, requests=requests), answer


def _noise(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(
        0, 256, shape, dtype=np.uint8
    )  # (H, W, C), the same in every run


def _input_shape(channel: grpc.Channel, target: Target, model: str) -> tuple[int, int, int]:
    name, revision = split_model(model)
    message = inference_pb.ModelMetadataRequest(name=name, version=revision)
    answer = _call(channel, _METADATA_METHOD, target, message, inference_pb.ModelMetadataResponse)
    _, height, width, channels = answer.inputs[0].shape
    return height, width, channels


def _call(channel: grpc.Channel, method: str, target: Target, message: Any, answer: Any) -> Any:  # noqa: ANN401 - a response of any type
    call = channel.unary_unary(method, type(message).SerializeToString, answer.FromString)
    try:
        return call(message, timeout=_FIRST_TIMEOUT_S, metadata=target.metadata)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or "no details"
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            details = f"{target.server} does not answer: {details}"
        raise CallFailed(code, details) from error
