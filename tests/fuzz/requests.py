"""Requests of every RPC: valid ones, from which mutations begin."""

import io
import itertools
from collections.abc import Mapping

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image

from serving.pb.inference import grpc_service_pb2 as inference
from serving.pb.lenserve.v1 import classifier_pb2 as ours
from tests.colours import SIDE
from tests.fuzz.stub_server import ALIAS, MODEL

_PIXELS = np.arange(SIDE * SIDE * 3, dtype=np.uint8)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_PIXELS.reshape(SIDE, SIDE, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def _classify() -> list[Message]:
    pixels = ours.Pixels(height=SIDE, width=SIDE, channels=3, data=_PIXELS.tobytes())
    images = [ours.Image(encoded=_png()), ours.Image(pixels=pixels), ours.Image()]
    grey = ours.Image(pixels=ours.Pixels(height=2, width=3, channels=1, data=b"abcdef"))
    return [
        ours.ClassifyRequest(model=MODEL, images=images[:1]),
        ours.ClassifyRequest(model=MODEL, images=images, top_k=2, version=1),
        ours.ClassifyRequest(model=MODEL, images=[images[1]] * 6, alias=ALIAS, id="7"),
        ours.ClassifyRequest(model=MODEL, images=[grey], version=2),
    ]


def _infer(key: str) -> list[Message]:
    request, tensor = inference.ModelInferRequest, inference.ModelInferRequest.InferInputTensor
    parameter, output = inference.InferParameter, inference.ModelInferRequest.InferRequestedOutputTensor
    one = tensor(name="image", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
    raw = _PIXELS.tobytes()
    typed = tensor(name="image", datatype="UINT8", shape=[1, SIDE, SIDE, 3])
    typed.contents.uint_contents.extend(_PIXELS.tolist())
    encoded = tensor(name="image", datatype="BYTES", shape=[2])
    png = _png()
    classes = output(name="probabilities", parameters={"classification": parameter(int64_param=2)})
    shared = {
        "shared_memory_region": parameter(string_param=key),
        "shared_memory_byte_size": parameter(int64_param=192),
        "shared_memory_offset": parameter(int64_param=64),
    }
    region = tensor(name="image", datatype="UINT8", shape=[1, SIDE, SIDE, 3], parameters=shared)
    return [
        request(model_name=MODEL, inputs=[one], raw_input_contents=[raw]),
        request(
            model_name=MODEL, model_version="1", id="9", inputs=[typed], outputs=[output(name="embedding")]
        ),
        request(
            model_name=MODEL,
            inputs=[encoded],
            raw_input_contents=[len(png).to_bytes(4, "little") + png + len(png).to_bytes(4, "little") + png],
            outputs=[classes, output(name="embedding")],
            parameters={"priority": parameter(uint64_param=3), "timeout": parameter(int64_param=10**6)},
        ),
        request(model_name=MODEL, inputs=[region], outputs=[output(name="probabilities", parameters=shared)]),
    ]


def valid_requests(key: str) -> Mapping[str, list[bytes]]:
    """Return serialized requests by the name of their message.

    Args:
        key: of a shared memory object.
    """
    listing = reflection_pb2.ServerReflectionRequest
    register = inference.SystemSharedMemoryRegisterRequest
    messages: list[Message] = [
        *_classify(),
        *_infer(key),
        *(
            health_pb2.HealthCheckRequest(service=each)
            for each in ("", MODEL, "none", "lenserve.v1.Classifier")
        ),
        listing(list_services=""),
        listing(file_containing_symbol="lenserve.v1.Classifier"),
        listing(file_by_filename="inference/grpc_service.proto"),
        listing(all_extension_numbers_of_type="inference.ModelInferRequest"),
        inference.ModelReadyRequest(name=MODEL, version="1"),
        inference.ModelMetadataRequest(name=MODEL),
        inference.ModelConfigRequest(name=MODEL, version=ALIAS),
        inference.ModelStatisticsRequest(name=MODEL),
        inference.ModelStatisticsRequest(),
        inference.RepositoryIndexRequest(ready=True),
        inference.RepositoryModelLoadRequest(model_name=MODEL),
        inference.RepositoryModelUnloadRequest(model_name=MODEL),
        inference.SystemSharedMemoryStatusRequest(name=key),
        register(name=key, key=f"/{key}", byte_size=1024),
        register(name="other", key=key, offset=1024, byte_size=1024),
        inference.SystemSharedMemoryUnregisterRequest(name="other"),
        inference.CudaSharedMemoryRegisterRequest(name=key, raw_handle=b"x", byte_size=9),
    ]
    by_type = itertools.groupby(sorted(messages, key=_type), _type)
    return {name: [each.SerializeToString() for each in group] for name, group in by_type}


def _type(message: Message) -> str:
    name: str = message.DESCRIPTOR.full_name
    return name
