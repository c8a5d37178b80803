"""Converts between messages of the Open Inference Protocol and numpy, with the classification extension.

Error messages use Triton's wording, which its users know.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from serving.bundle.images import Pixels
from serving.classify.results import LABELS_PER_SLICE, Inference, rank, row_slices
from serving.engine.base import Floats
from serving.errors import InvalidTensor
from serving.pb.inference import grpc_service_pb2 as pb
from serving.pb.inference.grpc_service_pb2 import ModelInferResponse as Response
from serving.rpc.open_inference.shared_memory import Regions, TensorLocation
from serving.rpc.open_inference.wire import field, tag_and_length
from serving.turns import LARGE_BYTES, Turns

INPUT = "image"
PROBABILITIES = "probabilities"
EMBEDDING = "embedding"

_LENGTH_BYTES = 4  # size of the little-endian length before each element of raw BYTES
_BATCH_AND_PIXELS = 4  # dimensions: N, height, width, channels
_MAX_OUTPUTS = 4  # two names, as tensors and as classes


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output to return: as the `top_k` classes, or as a tensor if that is 0."""

    name: str
    top_k: int = 0
    location: TensorLocation | None = None  # in shared memory; None: in the response


# Almost every request asks for one of these.
_PLAIN_OUTPUTS = {name: RequestedOutput(name) for name in (PROBABILITIES, EMBEDDING)}
DEFAULT_OUTPUTS = [_PLAIN_OUTPUTS[PROBABILITIES]]


def decode_outputs(request: pb.ModelInferRequest) -> list[RequestedOutput]:
    """Return the outputs that the request names, or the probabilities.

    Raises:
        InvalidTensor: the model does not have the output, its parameters are invalid, or there are too many.
    """
    outputs = request.outputs
    if len(outputs) > _MAX_OUTPUTS:  # each is another copy in the response
        raise InvalidTensor(f"the request names {len(outputs)} outputs, expected at most {_MAX_OUTPUTS}")
    return [_decode_output(output, request.model_name) for output in outputs] if outputs else DEFAULT_OUTPUTS


def decode_input(
    request: pb.ModelInferRequest, regions: Regions, max_images: int = 128
) -> Pixels | list[bytes | memoryview]:
    """Decode the one input of a request.

    Args:
        request: the request.
        regions: registered shared memory.
        max_images: maximum number of encoded images; they are counted before they are copied.

    Returns: (N, H, W, C) uint8, or N encoded images.

    Raises:
        InvalidTensor: the name, datatype, shape or number of bytes is wrong.
        UnknownRegion: the input is in a shared memory region that is not registered.
    """
    inputs = request.inputs
    if len(inputs) != 1:
        raise InvalidTensor(
            f"expected 1 inputs but got {len(inputs)} inputs for model {request.model_name!r}"
        )
    tensor = inputs[0]
    if tensor.name != INPUT:
        raise InvalidTensor(f"unexpected inference input {tensor.name!r} for model {request.model_name!r}")
    raw = _raw_content(request, tensor, regions)
    datatype = tensor.datatype
    if datatype == "BYTES":
        return _decode_encoded_images(tensor, raw, max_images)
    if datatype == "UINT8":
        return _decode_pixels(tensor, raw, request.model_name)
    raise InvalidTensor(
        f"inference input {INPUT!r} data-type is {datatype!r}, "
        f"but model {request.model_name!r} expects 'UINT8', or 'BYTES' of encoded images"
    )


def encode_probabilities(inference: Inference) -> bytes:
    """Serialize what `encode_response` returns for DEFAULT_OUTPUTS and no id: what most requests ask for."""
    probabilities = inference.output.probabilities
    raw = probabilities.tobytes()  # little-endian, like x86-64 and ARM
    return _before_probabilities(inference.model, inference.version, probabilities.shape, len(raw)) + raw


async def encode_response(
    inference: Inference,
    requested: Sequence[RequestedOutput],
    request_id: str,
    regions: Regions,
    turns: Turns,
) -> bytes:
    """Serialize a ModelInferResponse, with the outputs in the order of the request.

    Joins serialized fields: for a small response, this is much cheaper than building the message.

    Raises:
        InvalidTensor: an output does not fit into shared memory.
        UnknownRegion: a region was unregistered in the meantime.
    """
    fields = [_names(inference.model, inference.version)]
    if request_id:
        fields.append(field(Response.ID_FIELD_NUMBER, request_id.encode()))
    for output in requested:
        fields.extend(
            await _encode_classes(inference, output, turns)
            if output.top_k
            else _encode_tensor(inference, output, regions)
        )
    return b"".join(fields)


async def _encode_classes(
    inference: Inference, requested: RequestedOutput, turns: Turns
) -> tuple[bytes, bytes]:
    """Return the metadata and the raw contents of an output as its `top_k` classes."""
    probabilities = inference.output.probabilities
    count, classes = probabilities.shape
    top_k = min(requested.top_k, classes)
    labels = _plain_labels(inference.labels)
    elements: list[bytes] = []
    for part in row_slices(count, top_k):
        rows = probabilities[part]
        if count * top_k > LABELS_PER_SLICE:
            await turns.take(len(rows) * top_k)
        elements.extend(_class_elements(rows, labels, top_k))
    metadata = _output_metadata(requested.name, "BYTES", (count, top_k))
    return metadata, _raw_contents(b"".join(elements))


def _encode_tensor(inference: Inference, requested: RequestedOutput, regions: Regions) -> tuple[bytes, bytes]:
    """Return the metadata and the raw contents of an output, which clients match by position."""
    output = inference.output
    values = output.probabilities if requested.name == PROBABILITIES else output.embedding
    raw = values.tobytes()  # little-endian, like x86-64 and ARM
    if requested.location is None:
        return _output_metadata(requested.name, "FP32", values.shape), _raw_contents(raw)
    regions.write(requested.location, raw)
    metadata = _shared_output_metadata(requested.location, len(raw), requested.name, values.shape)
    return metadata, _raw_contents(b"")  # empty, to keep the positions


def _raw_contents(raw: bytes) -> bytes:
    return field(Response.RAW_OUTPUT_CONTENTS_FIELD_NUMBER, raw)


@lru_cache(maxsize=256)
def _names(model: str, version: int) -> bytes:
    names: bytes = Response(model_name=model, model_version=str(version)).SerializeToString()
    return names


@lru_cache(maxsize=256)
def _before_probabilities(model: str, version: int, shape: tuple[int, ...], size: int) -> bytes:
    """Return what precedes the raw probabilities of this size in a response with nothing else."""
    contents = tag_and_length(Response.RAW_OUTPUT_CONTENTS_FIELD_NUMBER, size)
    return _names(model, version) + _output_metadata(PROBABILITIES, "FP32", shape) + contents


@lru_cache(maxsize=256)
def _output_metadata(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """Return the fields of a response that describe one output."""
    response = Response()
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    metadata: bytes = response.SerializeToString()
    return metadata


def _shared_output_metadata(
    location: TensorLocation, byte_size: int, name: str, shape: tuple[int, ...]
) -> bytes:
    """Like `_output_metadata`, for shared memory. Not cached: clients choose the names of regions."""
    response = Response()
    tensor = response.outputs.add(name=name, datatype="FP32", shape=shape)
    tensor.parameters["shared_memory_region"].string_param = location.region
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if location.offset:
        tensor.parameters["shared_memory_offset"].int64_param = location.offset
    metadata: bytes = response.SerializeToString()
    return metadata


def _decode_output(output: pb.ModelInferRequest.InferRequestedOutputTensor, model: str) -> RequestedOutput:
    plain = _PLAIN_OUTPUTS.get(output.name)
    if plain is None:
        raise InvalidTensor(f"unexpected inference output {output.name!r} for model {model!r}")
    if not output.parameters:
        return plain
    location = _decode_location(output.parameters)
    if "classification" not in output.parameters:
        return RequestedOutput(output.name, location=location)
    if location is not None:
        raise InvalidTensor(f"output {output.name!r} cannot be returned as classes in shared memory")
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
    return RequestedOutput(output.name, parameter.int64_param)


def _raw_content(
    request: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor, regions: Regions
) -> bytes | None:
    """Return the bytes of the input, from the request or shared memory; None if it has typed contents."""
    raw = request.raw_input_contents
    raw_count = len(raw)
    has_typed = tensor.HasField("contents")
    if raw_count and has_typed:
        raise InvalidTensor(f"input {INPUT!r} has both contents and raw_input_contents, expected one of them")
    if raw_count > 1:
        raise InvalidTensor(f"expected 1 raw_input_contents but got {raw_count}")
    location = _decode_location(tensor.parameters) if tensor.parameters else None
    if location is None:
        return raw[0] if raw_count else None
    if raw_count or has_typed:
        raise InvalidTensor(f"input {INPUT!r} has contents and shared memory, expected one of them")
    return regions.read(location)


def _decode_location(parameters: Mapping[str, pb.InferParameter]) -> TensorLocation | None:
    if "shared_memory_region" not in parameters:
        return None
    region = parameters["shared_memory_region"]
    if region.WhichOneof("parameter_choice") != "string_param":
        raise InvalidTensor("invalid value type for 'shared_memory_region' parameter, expected string_param")
    if "shared_memory_byte_size" not in parameters:
        raise InvalidTensor("'shared_memory_region' needs a 'shared_memory_byte_size' parameter too")
    offset, byte_size = (_size(parameters, f"shared_memory_{name}") for name in ("offset", "byte_size"))
    return TensorLocation(region.string_param, offset, byte_size)


def _size(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    if name not in parameters:
        return 0
    parameter = parameters[name]
    if parameter.WhichOneof("parameter_choice") != "int64_param" or parameter.int64_param < 0:
        raise InvalidTensor(f"invalid value for {name!r} parameter, expected an int64_param of at least 0")
    value: int = parameter.int64_param
    return value


def _decode_pixels(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, model: str) -> Pixels:
    shape = _shape(tensor)
    if len(shape) != _BATCH_AND_PIXELS or min(shape) < 1:
        raise InvalidTensor(
            f"unexpected shape for input {INPUT!r} for model {model!r}. "
            f"Expected [batch, height, width, channels], got {list(shape)}"
        )
    values = _typed_values(tensor) if raw is None else raw
    expected = math.prod(shape)
    if len(values) != expected:
        raise InvalidTensor(
            f"input byte size mismatch for input {INPUT!r} for model {model!r}. "
            f"Expected {expected}, got {len(values)}"
        )
    return np.ndarray(shape, np.uint8, values)  # (N, H, W, C)


def _typed_values(tensor: pb.ModelInferRequest.InferInputTensor) -> Pixels:
    """Return the values of `contents`, which have 32 bits each."""
    wide = np.array(tensor.contents.uint_contents, np.uint32)
    if wide.max(initial=0) > np.iinfo(np.uint8).max:
        raise InvalidTensor(f"input {INPUT!r} has the value {wide.max()}, the largest UINT8 is 255")
    return wide.astype(np.uint8)


def _shape(tensor: pb.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
    shape = tensor.shape
    if len(shape) > _BATCH_AND_PIXELS:
        raise InvalidTensor(
            f"input {INPUT!r} has {len(shape)} dimensions, expected at most {_BATCH_AND_PIXELS}"
        )
    return tuple(shape)


def _decode_encoded_images(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, max_images: int
) -> list[bytes | memoryview]:
    shape = list(_shape(tensor))
    elements: Iterable[bytes | memoryview] = tensor.contents.bytes_contents if raw is None else _split(raw)
    images = list(islice(elements, max_images + 1))
    if len(images) > max_images:
        raise InvalidTensor(
            f"input {INPUT!r} has more than {max_images} BYTES elements, the limit of images in one request"
        )
    if shape not in ([len(images)], [len(images), 1]):
        raise InvalidTensor(f"input {INPUT!r} has shape {shape} but {len(images)} BYTES elements")
    return images


def _split(raw: bytes) -> Iterator[bytes | memoryview]:
    """Yield the elements of raw BYTES. Those of a large tensor are not copied here, on the event loop."""
    content = raw if len(raw) <= LARGE_BYTES else memoryview(raw)
    at = 0
    while at < len(raw):
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or end > len(raw):
            raise InvalidTensor(
                f"BYTES element at byte {at} ends at byte {end}, but the input has {len(raw)} bytes"
            )
        yield content[start:end]
        at = end


def _class_elements(rows: Floats, labels: Sequence[str], top_k: int) -> Iterator[bytes]:
    """Yield length-prefixed `probability:index:label` elements, image by image."""
    for row in rows:
        for each in rank(row, labels, top_k):
            element = f"{each.probability:f}:{each.index}:{each.label}".encode()
            yield len(element).to_bytes(_LENGTH_BYTES, "little") + element


@lru_cache(maxsize=16)
def _plain_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return labels without colons: Triton's clients split elements at colons."""
    return tuple(label.replace(":", " ") for label in labels)
