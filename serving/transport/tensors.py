"""Tensors of the Open Inference Protocol: its messages <-> numpy, with the classification extension.

Messages of errors keep the wording that users of Triton know.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serving.bundle.images import Pixels
from serving.classifier import Inference, rank
from serving.errors import InvalidTensor
from serving.pb.inference import grpc_service_pb2 as pb

INPUT = "image"
PROBABILITIES = "probabilities"
EMBEDDING = "embedding"

_LENGTH_BYTES = 4  # before each element of raw BYTES, little-endian
_BATCH_AND_PIXELS = 4  # dimensions: N, height, width, channels


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that a request asks for, as classes where top_k is not 0."""

    name: str
    top_k: int = 0


def decode_outputs(request: pb.ModelInferRequest) -> list[WantedOutput]:
    """Which outputs a request wants; probabilities where it names none.

    Raises:
        InvalidTensor: there is no such output, or its classification parameter is wrong.
    """
    return [_decode_output(output, request.model_name) for output in request.outputs] or [
        WantedOutput(PROBABILITIES)
    ]


def decode_input(request: pb.ModelInferRequest) -> Pixels | list[bytes]:
    """The one input of a request.

    Returns: (N, H, W, C) uint8, or N encoded images.

    Raises:
        InvalidTensor: name, datatype, shape or number of bytes are wrong.
    """
    if len(request.inputs) != 1:
        found = len(request.inputs)
        raise InvalidTensor(f"expected 1 inputs but got {found} inputs for model {request.model_name!r}")
    tensor = request.inputs[0]
    if tensor.name != INPUT:
        raise InvalidTensor(f"unexpected inference input {tensor.name!r} for model {request.model_name!r}")
    if request.raw_input_contents and tensor.HasField("contents"):
        raise InvalidTensor(f"input {INPUT!r} has both contents and raw_input_contents, expected one of them")
    if len(request.raw_input_contents) > 1:
        raise InvalidTensor(f"expected 1 raw_input_contents but got {len(request.raw_input_contents)}")
    raw = request.raw_input_contents[0] if request.raw_input_contents else None
    if tensor.datatype == "BYTES":
        return _decode_encoded_images(tensor, raw)
    if tensor.datatype == "UINT8":
        return _decode_pixels(tensor, raw, request.model_name)
    raise InvalidTensor(
        f"inference input {INPUT!r} data-type is {tensor.datatype!r}, "
        f"but model {request.model_name!r} expects 'UINT8', or 'BYTES' of encoded images"
    )


def encode_output(inference: Inference, wanted: WantedOutput, response: pb.ModelInferResponse) -> None:
    """Add one output and its raw contents to a response."""
    values = inference.output.probabilities if wanted.name == PROBABILITIES else inference.output.embedding
    if not wanted.top_k:
        response.outputs.add(name=wanted.name, datatype="FP32", shape=values.shape)
        response.raw_output_contents.append(np.ascontiguousarray(values, dtype="<f4").tobytes())
        return
    count, classes = values.shape
    response.outputs.add(name=wanted.name, datatype="BYTES", shape=(count, min(wanted.top_k, classes)))
    response.raw_output_contents.append(b"".join(_encode_classes(inference, wanted)))


def _decode_output(output: pb.ModelInferRequest.InferRequestedOutputTensor, model: str) -> WantedOutput:
    if output.name not in (PROBABILITIES, EMBEDDING):
        raise InvalidTensor(f"unexpected inference output {output.name!r} for model {model!r}")
    if "classification" not in output.parameters:
        return WantedOutput(output.name)
    if output.name != PROBABILITIES:
        raise InvalidTensor(
            f"class result not available for output {output.name!r}: only for {PROBABILITIES!r}"
        )
    parameter = output.parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidTensor("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param < 1:
        raise InvalidTensor(
            f"invalid value for 'classification' parameter, expected > 0, got {parameter.int64_param}"
        )
    return WantedOutput(output.name, parameter.int64_param)


def _decode_pixels(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, model: str) -> Pixels:
    shape = tuple(tensor.shape)
    if len(shape) != _BATCH_AND_PIXELS or min(shape) < 1:
        raise InvalidTensor(
            f"unexpected shape for input {INPUT!r} for model {model!r}. "
            f"Expected [batch, height, width, channels], got {list(shape)}"
        )
    values = _typed_values(tensor) if raw is None else np.frombuffer(raw, np.uint8)
    if values.size != math.prod(shape):
        raise InvalidTensor(
            f"input byte size mismatch for input {INPUT!r} for model {model!r}. "
            f"Expected {math.prod(shape)}, got {values.size}"
        )
    return values.reshape(shape)  # (N, H, W, C)


def _typed_values(tensor: pb.ModelInferRequest.InferInputTensor) -> Pixels:
    """The values of `contents`, which spends 32 bits on each."""
    wide = np.array(tensor.contents.uint_contents, np.uint32)
    if wide.max(initial=0) > np.iinfo(np.uint8).max:
        raise InvalidTensor(f"input {INPUT!r} holds {wide.max()}, UINT8 ends at 255")
    return wide.astype(np.uint8)


def _decode_encoded_images(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[bytes]:
    images = list(tensor.contents.bytes_contents) if raw is None else list(_split(raw))
    shape = list(tensor.shape)
    if shape not in ([len(images)], [len(images), 1]):
        raise InvalidTensor(f"input {INPUT!r} has shape {shape} but {len(images)} BYTES elements")
    return images


def _split(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or end > len(raw):
            raise InvalidTensor(
                f"BYTES element at byte {at} ends at byte {end}, but there are only {len(raw)}"
            )
        yield raw[start:end]
        at = end


def _encode_classes(inference: Inference, wanted: WantedOutput) -> Iterator[bytes]:
    """Yields `probability:index:label`, each behind its length, image by image."""
    for row in inference.output.probabilities:
        for each in rank(row, _plain_labels(inference.labels), wanted.top_k):
            element = f"{each.probability:f}:{each.index}:{each.label}".encode()
            yield len(element).to_bytes(_LENGTH_BYTES, "little") + element


def _plain_labels(labels: Sequence[str]) -> Sequence[str]:
    """Labels without the colon at which stock clients split the element."""
    return [label.replace(":", " ") for label in labels]
