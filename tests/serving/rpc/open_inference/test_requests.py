"""A request with a known prefix decodes to the same value."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from serving.bundle.images import Pixels
from serving.errors import InvalidTensor, LenserveError
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.requests import RequestReader
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.open_inference.tensors import RequestedOutput
from serving.rpc.open_inference.wire import field

SHAPE = (2, 3, 3, 1)
PIXELS = np.arange(18, dtype=np.uint8).reshape(SHAPE)
NO_REGIONS = Regions()
RAW = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
ID = pb.ModelInferRequest.ID_FIELD_NUMBER


def _request(pixels: Pixels = PIXELS, *, model: str = "colours", **fields: Any) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    message = pb.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[pixels.tobytes()], **fields
    )
    data: bytes = message.SerializeToString()
    return data


def _read(reader: RequestReader, data: bytes) -> tuple[bool, Any]:
    """Return whether the prefix was known, and the decoded request."""
    is_known = reader._find(data) is not None
    return is_known, reader.read(data).decode(NO_REGIONS)


def _decoded(reader: RequestReader, data: bytes) -> object:
    """The decoded request or the error, as values that can be compared."""
    try:
        request = reader.read(data)
        images, outputs = request.decode(NO_REGIONS)
    except (LenserveError, DecodeError) as error:
        return type(error), str(error)
    *names, parameters, _ = request
    return (
        names,
        dict(parameters),
        list(outputs),
        images.tolist() if isinstance(images, np.ndarray) else images,
    )


def test_a_known_prefix_has_new_pixels() -> None:
    """The second request is not parsed, but has its own pixels."""
    reader = RequestReader()
    others = 255 - PIXELS

    assert _read(reader, _request())[0] is False
    is_known, (pixels, outputs) = _read(reader, _request(others))

    assert is_known
    np.testing.assert_array_equal(pixels, others)
    assert [each.name for each in outputs] == ["probabilities"]


def test_prefixes_of_one_size_are_distinguished() -> None:
    """Two models whose names have the same length: each request goes to its model."""
    reader = RequestReader()
    requests = [_request(model=model) for model in ("first", "other")] * 2

    known = [_read(reader, data)[0] for data in requests]

    assert known == [False, False, True, True]
    assert [reader.read(data).model_name for data in requests[2:]] == ["first", "other"]


def test_parameters_are_part_of_the_prefix() -> None:
    """Parameters and version of a known prefix are those of the first request."""
    reader = RequestReader()
    parameters = {"timeout": pb.InferParameter(int64_param=7)}
    data = _request(parameters=parameters, model_version="3")
    _read(reader, data)
    assert _read(reader, data)[0]

    known = reader.read(data)

    assert known.parameters["timeout"].int64_param == 7
    assert known.model_version == "3"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_request(id="7"), id="an id is not repeated"),
        pytest.param(_request() + field(ID, b""), id="the pixels are not last"),
        pytest.param(_request() + b"\x08\x01", id="an unknown field after the pixels"),
        pytest.param(_request(model="m" * 2000), id="a long prefix"),
        pytest.param(
            _request()[:-19] + b"\x92\0" + PIXELS.tobytes(), id="a length encoded in too many bytes"
        ),
    ],
)
def test_other_prefixes_are_not_kept(data: bytes) -> None:
    """Such requests are parsed every time."""
    reader = RequestReader()

    read = [_read(reader, data) for _ in range(2)]

    for is_known, (pixels, _) in read:
        assert not is_known
        np.testing.assert_array_equal(pixels, PIXELS)


def test_bytes_that_look_like_raw_contents_are_not_pixels() -> None:
    """The end of an unknown field may look like the field of the pixels."""
    reader = RequestReader()
    raw = field(RAW, PIXELS.tobytes())
    data = _request() + field(1000, raw)

    for _ in range(2):
        is_known, (pixels, _) = _read(reader, data)
        assert not is_known
        np.testing.assert_array_equal(pixels, PIXELS)


def test_a_rejected_request_is_rejected_again() -> None:
    """Only decoded requests are kept."""
    reader = RequestReader()
    data = _request().replace(b"UINT8", b"INT16")

    for _ in range(2):
        with pytest.raises(InvalidTensor, match="INT16"):
            _read(reader, data)


def test_an_id_after_fewer_pixels_is_not_read_as_pixels() -> None:
    """A request of the same size with shorter raw contents has another prefix."""
    reader = RequestReader()
    longer, shorter = _request(), _request(PIXELS[:1])
    _read(reader, longer)
    ended = shorter + field(ID, b"7" * (len(longer) - len(shorter) - 2))

    assert len(ended) == len(longer)
    is_known, (pixels, _) = _read(reader, ended)
    assert not is_known
    np.testing.assert_array_equal(pixels, PIXELS[:1])


def test_outputs_are_part_of_the_prefix() -> None:
    """Including the number of classes."""
    reader = RequestReader()
    parameters = {"classification": pb.InferParameter(int64_param=2)}
    output = pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities", parameters=parameters)
    data = _request(outputs=[output])
    _read(reader, data)

    is_known, (_, outputs) = _read(reader, data)

    assert is_known
    assert list(outputs) == [RequestedOutput("probabilities", 2)]


def test_memory_is_bounded_and_the_newest_prefixes_stay() -> None:
    """For many requests of one size or of many sizes: the oldest prefixes are removed first."""
    reader = RequestReader()
    for number in range(1000):
        _read(reader, _request(model=f"{number:04}"))
        _read(reader, _request(PIXELS[:1], model="m" * number))
        assert len(reader._prefixes) <= 256
        assert max(map(len, reader._prefixes.values())) <= 8

    assert _read(reader, _request(model="0999"))[0]


_shapes = st.tuples(*[st.integers(1, 3)] * 4)
_requests = st.builds(
    lambda shape, fill, **fields: _request(np.full(shape, fill, np.uint8), **fields),
    _shapes,
    st.sampled_from([0, 7, 0x3A, 255]),  # 0x3A begins a field of raw contents
    model=st.sampled_from(["a", "b", "long" * 9]),
    model_version=st.sampled_from(["", "3"]),
    id=st.sampled_from(["", "", "request 7"]),
    outputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferRequestedOutputTensor,
            name=st.sampled_from(["probabilities", "embedding", "logits"]),
        ),
        max_size=2,
    ),
)


_WHOLE_FIELDS = [b"", field(1, b"other"), field(ID, b"7"), field(RAW, b""), b"\x08\x01", b"\x0b\x0c"]
_HALF_FIELDS = [b"\x0b", b"\x0c", b"\x00", b"\x3a", b"\x3a\x05ab"]
_fields = st.sampled_from(_WHOLE_FIELDS + _HALF_FIELDS)


@given(st.lists(st.tuples(_requests, _fields, _fields, st.binary(max_size=40)), max_size=4))
def test_a_reader_with_prefixes_decodes_as_a_new_one(
    requests: list[tuple[bytes, bytes, bytes, bytes]],
) -> None:
    """Random requests in any order, with other fields before and after, or cut and continued by any bytes."""
    reader = RequestReader()
    for request, before, after, end in requests:
        data = before + request + after
        for each in (request, data, data[: max(0, len(data) - len(end))] + end, request + end):
            assert _decoded(reader, each) == _decoded(RequestReader(), each)
