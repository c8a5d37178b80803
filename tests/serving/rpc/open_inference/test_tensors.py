"""Tensors of the Open Inference Protocol: any message is decoded, or rejected with a LenserveError."""

import asyncio
import math
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from serving.bundle.images import Pixels
from serving.classify.results import Inference
from serving.engine.base import Output
from serving.errors import InvalidTensor, UnknownRegion
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference import tensors
from serving.rpc.open_inference.shared_memory import Regions
from serving.rpc.open_inference.tensors import RequestedOutput, decode_outputs
from serving.turns import Turns
from tests.serving.counting_turns import CountingTurns

InputTensor = pb.ModelInferRequest.InferInputTensor
Contents = pb.InferTensorContents
OutputTensor = pb.ModelInferRequest.InferRequestedOutputTensor


NO_REGIONS = Regions()


def _request(
    *inputs: InputTensor, raw: tuple[bytes, ...] = (), outputs: tuple[OutputTensor, ...] = ()
) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name="colours", inputs=inputs, raw_input_contents=raw, outputs=outputs)


def _input(datatype: str, shape: list[int], *, name: str = "image", **fields: Any) -> InputTensor:
    return InputTensor(name=name, datatype=datatype, shape=shape, **fields)


def _framed(elements: list[bytes]) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def _unframed(raw: bytes) -> list[bytes]:
    elements, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        elements.append(raw[at + 4 : end])
        at = end
    return elements


def _probabilities(*rows: list[float], labels: tuple[str, ...] = ("a", "b", "c")) -> Inference:
    values = np.array(rows, np.float32)
    return Inference("colours", 1, labels, Output(values, values[:, :1] * 10))


def decode_input(request: pb.ModelInferRequest) -> list[bytes | memoryview] | Pixels:
    """Decode without shared memory."""
    return tensors.decode_input(request, NO_REGIONS)


def _response(
    inference: Inference, wanted: list[RequestedOutput], request_id: str = "", turns: Turns | None = None
) -> pb.ModelInferResponse:
    encoding = tensors.encode_response(inference, wanted, request_id, NO_REGIONS, turns or Turns())
    return pb.ModelInferResponse.FromString(asyncio.run(encoding))


def _encoded(
    inference: Inference, wanted: RequestedOutput
) -> tuple[pb.ModelInferResponse.InferOutputTensor, bytes]:
    """The one output of a response, and its raw contents."""
    response = _response(inference, [wanted])
    (tensor,), (raw,) = response.outputs, response.raw_output_contents
    return tensor, raw


def _classes(inference: Inference, top_k: int) -> list[str]:
    return [
        each.decode() for each in _unframed(_encoded(inference, RequestedOutput("probabilities", top_k))[1])
    ]


@given(st.lists(st.binary(max_size=300)))
def test_framed_bytes_are_decoded(elements: list[bytes]) -> None:
    """Raw elements with their lengths and typed contents decode to the same list."""
    raw = decode_input(_request(_input("BYTES", [len(elements)]), raw=(_framed(elements),)))
    typed = decode_input(
        _request(_input("BYTES", [len(elements), 1], contents=Contents(bytes_contents=elements)))
    )

    assert raw == typed == elements


@given(st.lists(st.binary(max_size=8), min_size=1), st.integers(1, 11))
def test_truncated_bytes_are_rejected_with_both_numbers(elements: list[bytes], cut: int) -> None:
    """The message has the beginning and the end of the element that is cut off."""
    raw = _framed(elements)
    assume(cut <= 4 + len(elements[-1]) - 1)
    with pytest.raises(
        InvalidTensor,
        match=rf"^BYTES element at byte \d+ ends at byte \d+, but the input has {len(raw) - cut} bytes$",
    ):
        decode_input(_request(_input("BYTES", [len(elements)]), raw=(raw[:-cut],)))


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
    st.randoms(use_true_random=False),
)
def test_pixels_are_decoded(shape: tuple[int, int, int, int], random: Random) -> None:
    """Raw and typed uint8 decode to the same array, of the shape in the request."""
    pixels = np.frombuffer(random.randbytes(math.prod(shape)), np.uint8)
    raw = decode_input(_request(_input("UINT8", list(shape)), raw=(pixels.tobytes(),)))
    contents = Contents(uint_contents=pixels.tolist())
    typed = decode_input(_request(_input("UINT8", list(shape), contents=contents)))

    assert isinstance(raw, np.ndarray)
    assert isinstance(typed, np.ndarray)
    assert raw.dtype == typed.dtype == np.uint8
    np.testing.assert_array_equal(raw, pixels.reshape(shape))
    np.testing.assert_array_equal(typed, raw)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(_request(), "expected 1 inputs but got 0 inputs for model 'colours'", id="no-input"),
        pytest.param(
            _request(_input("UINT8", [1]), _input("UINT8", [1])),
            "expected 1 inputs but got 2 inputs for model 'colours'",
            id="two-inputs",
        ),
        pytest.param(
            _request(_input("UINT8", [1, 1, 1, 1], name="data"), raw=(b"0",)),
            "unexpected inference input 'data' for model 'colours'",
            id="other-name",
        ),
        pytest.param(
            _request(_input("FP32", [1, 1, 1, 1]), raw=(bytes(4),)),
            "inference input 'image' data-type is 'FP32', "
            "but model 'colours' expects 'UINT8', or 'BYTES' of encoded images",
            id="other-datatype",
        ),
        pytest.param(
            _request(_input("UINT8", [1, 1, 1, 1], contents=Contents(uint_contents=[1])), raw=(b"1",)),
            "input 'image' has both contents and raw_input_contents, expected one of them",
            id="raw-and-contents",
        ),
        pytest.param(
            _request(_input("UINT8", [1, 1, 1, 1]), raw=(b"1", b"2")),
            "expected 1 raw_input_contents but got 2",
            id="two-raws",
        ),
        pytest.param(
            _request(_input("UINT8", [2, 2, 3]), raw=(bytes(12),)),
            "unexpected shape for input 'image' for model 'colours'. "
            "Expected [batch, height, width, channels], got [2, 2, 3]",
            id="three-dimensions",
        ),
        pytest.param(
            _request(_input("UINT8", [1, -1, -1, 3]), raw=(bytes(3),)),
            "unexpected shape for input 'image' for model 'colours'. "
            "Expected [batch, height, width, channels], got [1, -1, -1, 3]",
            id="negative",
        ),
        pytest.param(
            _request(_input("UINT8", [1, 2, 2, 3]), raw=(bytes(11),)),
            "input byte size mismatch for input 'image' for model 'colours'. Expected 12, got 11",
            id="byte-count",
        ),
        pytest.param(
            _request(_input("UINT8", [2**62, 2**62, 4, 3]), raw=(b"",)),
            f"input byte size mismatch for input 'image' for model 'colours'. Expected {2**124 * 12}, got 0",
            id="overflowing-shape",
        ),
        pytest.param(
            _request(_input("UINT8", [1, 1, 1, 1])),
            "input byte size mismatch for input 'image' for model 'colours'. Expected 1, got 0",
            id="nothing",
        ),
        pytest.param(
            _request(_input("UINT8", [1, 1, 1, 2], contents=Contents(uint_contents=[3, 256]))),
            "input 'image' has the value 256, the largest UINT8 is 255",
            id="over-255",
        ),
        pytest.param(
            _request(_input("BYTES", [2]), raw=(_framed([b"a"]),)),
            "input 'image' has shape [2] but 1 BYTES elements",
            id="bytes-shape",
        ),
        pytest.param(
            _request(_input("BYTES", []), raw=(_framed([b"a"]),)),
            "input 'image' has shape [] but 1 BYTES elements",
            id="bytes-no-shape",
        ),
        pytest.param(
            _request(_input("BYTES", [1]), raw=(b"\xff\xff\xff\xffabc",)),
            "BYTES element at byte 0 ends at byte 4294967299, but the input has 7 bytes",
            id="bytes-length",
        ),
    ],
)
def test_invalid_inputs_are_rejected_in_tritons_words(request_: pb.ModelInferRequest, message: str) -> None:
    """The message has the expected and the actual value."""
    with pytest.raises(InvalidTensor) as caught:
        decode_input(request_)

    assert str(caught.value) == message


def test_encoded_images_are_counted_before_they_are_copied() -> None:
    """Four million empty elements are an error after the first too many, raw or typed."""
    raw = _request(_input("BYTES", [4 * 2**20]), raw=(bytes(16 * 2**20),))
    typed = _request(_input("BYTES", [2**20], contents=Contents(bytes_contents=[b""] * 2**20)))
    for request in (raw, typed):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidTensor, match="has more than 3 BYTES elements"):
                tensors.decode_input(request, NO_REGIONS, max_images=3)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 17 * 2**20  # one copy of the raw contents


@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_a_shape_has_few_dimensions(datatype: str) -> None:
    """A million of them are neither copied nor repeated in the message."""
    with pytest.raises(InvalidTensor, match="has 1048576 dimensions, expected at most 4"):
        decode_input(_request(_input(datatype, [1] * 2**20), raw=(b"",)))


def test_outputs_cannot_be_repeated_without_end() -> None:
    """Each is another copy in the response: 60 kB of names would become gigabytes."""
    names = ["probabilities", "embedding"]
    request = pb.ModelInferRequest(outputs=[{"name": name} for name in names * 2])
    assert len(decode_outputs(request)) == 4
    request.outputs.add(name="probabilities")
    with pytest.raises(InvalidTensor, match="names 5 outputs, expected at most 4"):
        decode_outputs(request)


def _wanted(name: str = "probabilities", **parameter: Any) -> OutputTensor:
    output = OutputTensor(name=name)
    if parameter:
        output.parameters["classification"].CopyFrom(pb.InferParameter(**parameter))
    return output


def test_outputs_are_those_named_or_probabilities() -> None:
    """In the order of the request; the probabilities if it names none."""
    assert decode_outputs(_request()) == [RequestedOutput("probabilities")]
    named = _request(outputs=(_wanted("embedding"), _wanted(int64_param=2)))
    assert decode_outputs(named) == [RequestedOutput("embedding"), RequestedOutput("probabilities", 2)]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param(
            _wanted("logits"), "unexpected inference output 'logits' for model 'colours'", id="unknown-output"
        ),
        pytest.param(
            _wanted("embedding", int64_param=1),
            "class result not available for output 'embedding': only for 'probabilities'",
            id="classes-of-embedding",
        ),
        pytest.param(
            _wanted(string_param="3"),
            "invalid value type for 'classification' parameter, expected int64_param",
            id="string",
        ),
        pytest.param(
            _wanted(uint64_param=3),
            "invalid value type for 'classification' parameter, expected int64_param",
            id="uint64",
        ),
        pytest.param(
            _wanted(int64_param=0),
            "invalid value for 'classification' parameter, expected > 0, got 0",
            id="zero",
        ),
        pytest.param(
            _wanted(int64_param=-(2**63)),
            f"invalid value for 'classification' parameter, expected > 0, got {-(2**63)}",
            id="negative",
        ),
    ],
)
def test_invalid_outputs_are_rejected(output: OutputTensor, message: str) -> None:
    """The message for unknown names and invalid parameters has what was expected."""
    with pytest.raises(InvalidTensor) as caught:
        decode_outputs(_request(outputs=(output,)))

    assert str(caught.value) == message


def test_an_output_is_little_endian_fp32_of_its_shape() -> None:
    """Probabilities and embeddings are raw FP32."""
    inference = _probabilities([0.5, 0.25, 0.25], [0, 1, 0])

    tensor, raw = _encoded(inference, RequestedOutput("probabilities"))
    embedding, embedding_raw = _encoded(inference, RequestedOutput("embedding"))

    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("probabilities", "FP32", [2, 3])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(2, 3), inference.output.probabilities)
    assert (embedding.name, embedding.datatype, list(embedding.shape)) == ("embedding", "FP32", [2, 1])
    np.testing.assert_array_equal(np.frombuffer(embedding_raw, "<f4"), [5, 0])


def test_a_response_has_its_model_and_outputs_in_order() -> None:
    """Raw contents have the order of the outputs."""
    inference = _probabilities([0.5, 0.25, 0.25])
    wanted = [
        RequestedOutput("embedding"),
        RequestedOutput("probabilities", 1),
        RequestedOutput("probabilities"),
    ]

    response = _response(inference, wanted, "request 7")

    assert (response.model_name, response.model_version, response.id) == ("colours", "1", "request 7")
    assert [each.name for each in response.outputs] == ["embedding", "probabilities", "probabilities"]
    assert list(map(len, response.raw_output_contents)) == [4, 4 + len("0.500000:0:a"), 12]


def test_classes_are_value_index_label_with_six_decimals() -> None:
    """`%f:index:label`, most probable first, image by image, as BYTES of [batch, k]."""
    inference = _probabilities([0.1, 0.7, 0.2], [1.0, 0.0, 1e-9])

    tensor, raw = _encoded(inference, RequestedOutput("probabilities", 2))

    assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [2, 2])
    assert _unframed(raw) == [b"0.700000:1:b", b"0.200000:2:c", b"1.000000:0:a", b"0.000000:2:c"]


def test_more_classes_than_there_are_means_all() -> None:
    """The shape has the number of classes that are returned."""
    inference = _probabilities([0.1, 0.7, 0.2])
    wanted = RequestedOutput("probabilities", 2**63 - 1)

    assert list(_encoded(inference, wanted)[0].shape) == [1, 3]
    assert _classes(inference, 2**63 - 1) == ["0.700000:1:b", "0.200000:2:c", "0.100000:0:a"]


def test_equal_probabilities_are_ordered_by_index() -> None:
    """Ties are stable, unlike Triton's."""
    assert _classes(_probabilities([0.4, 0.2, 0.4]), 3) == ["0.400000:0:a", "0.400000:2:c", "0.200000:1:b"]


def test_a_colon_in_a_label_does_not_break_the_clients_split() -> None:
    """Triton's clients split at every colon, so labels are sent without."""
    inference = _probabilities([0.9, 0.1], labels=("cat: tabby", "dog"))

    assert [each.split(":") for each in _classes(inference, 1)] == [["0.900000", "0", "cat  tabby"]]


def test_many_classes_are_encoded_in_slices() -> None:
    """128 images with 1,000 classes took 23 ms in one turn of the event loop."""
    values = np.random.default_rng(7).random((128, 1000), np.float32)
    inference = Inference("colours", 1, tuple(map(str, range(1000))), Output(values, values[:, :1]))
    turns = CountingTurns()
    response = _response(inference, [RequestedOutput("probabilities", 1000)], turns=turns)
    assert turns.costs_us == [1000] * 128
    elements = [each.decode() for each in _unframed(response.raw_output_contents[0])]
    for row, start in ((0, 0), (127, 127_000)):
        order = np.argsort(-values[row], kind="stable")
        assert elements[start : start + 1000] == [f"{values[row][each]:f}:{each}:{each}" for each in order]


def test_labels_are_utf_8() -> None:
    """The length of an element counts bytes."""
    assert _classes(_probabilities([0.9, 0.1], labels=("Käse", "犬")), 2) == [
        "0.900000:0:Käse",
        "0.100000:1:犬",
    ]


_contents = st.builds(
    Contents,
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=6),
    bytes_contents=st.lists(st.binary(max_size=6), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
)
_parameters = st.one_of(
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, string_param=st.text(max_size=3)),
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter),
)
_SHARED_MEMORY = ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"]
_inputs = st.builds(
    InputTensor,
    name=st.sampled_from(["image", "image", "data", ""]),
    datatype=st.sampled_from(["UINT8", "BYTES", "FP32", ""]),
    shape=st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**63), 2**63 - 1)), max_size=5),
    contents=st.one_of(st.none(), _contents),
    parameters=st.dictionaries(st.sampled_from(_SHARED_MEMORY), _parameters),
)
_outputs = st.builds(
    OutputTensor,
    name=st.sampled_from(["probabilities", "embedding", ""]),
    parameters=st.dictionaries(
        st.sampled_from(["classification", "binary_data", *_SHARED_MEMORY]), _parameters
    ),
)
_requests = st.builds(
    pb.ModelInferRequest,
    inputs=st.lists(_inputs, max_size=2),
    outputs=st.lists(_outputs, max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=2),
)


@pytest.mark.parametrize("decode", [decode_input, decode_outputs])
def test_any_request_is_decoded_or_rejected(decode: Callable[[Any], Any]) -> None:
    """Any message gives a value or a LenserveError."""

    @settings(suppress_health_check=[HealthCheck.too_slow])  # drawing is slow where other tests run beside
    @given(_requests)
    def holds(request: pb.ModelInferRequest) -> None:
        try:
            decoded = decode(request)
        except (InvalidTensor, UnknownRegion):
            return
        if isinstance(decoded, np.ndarray):
            assert (decoded.ndim, decoded.dtype) == (4, np.uint8)
        else:
            assert all(isinstance(each, (bytes, RequestedOutput)) for each in decoded)

    holds()
