"""Messages from and to JSON, whatever their size."""

import base64
import json

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.field_limit import MAX_TEXT_BYTES
from serving.rpc.handlers import Failure
from serving.transports.rpc_over_http.connect_json import MAX_JSON_ELEMENTS, to_answer, to_request

CLASSIFY = "/lenserve.v1.Classifier/Classify"
OIP = "/inference.GRPCInferenceService/"


def _labels(count: int) -> pb.ClassifyResponse:
    labels = [{"label": f'"{each}"', "index": each, "probability": 0.5} for each in range(count)]
    return pb.ClassifyResponse(model="m", version=7, predictions=[{"ranking": {"labels": labels}}] * 3)


ANSWERS: dict[str, tuple[str, Message]] = {
    "nothing": (CLASSIFY, pb.ClassifyResponse()),
    "few labels": (CLASSIFY, _labels(1)),
    "many labels": (CLASSIFY, _labels(1000)),
    "only a list": (CLASSIFY, pb.ClassifyResponse(predictions=[{}, {}])),
    "a map and lists of text": (
        f"{OIP}ModelMetadata",
        oip.ModelMetadataResponse(
            name="m", versions=["1", "2"], properties={"a": "b"}, inputs=[{"shape": [1]}]
        ),
    ),
    "a map of messages": (
        f"{OIP}SystemSharedMemoryStatus",
        oip.SystemSharedMemoryStatusResponse(
            regions={"a": oip.SystemSharedMemoryStatusResponse.RegionStatus(key="k")}
        ),
    ),
    "bytes": (
        f"{OIP}ModelInfer",
        oip.ModelInferResponse(raw_output_contents=[b"abc"], outputs=[{"name": "x"}]),
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_an_answer_is_converted_as_a_whole_message_is(case: str) -> None:
    """Element by element, in a thread or not: the JSON means the same."""
    method, answer = ANSWERS[case]
    text = await to_answer(method, answer.SerializeToString())
    assert json.loads(text) == json_format.MessageToDict(answer)


@pytest.mark.parametrize("size", [1, 1000, 10**6])
async def test_a_request_of_any_size_is_converted(size: int) -> None:
    """In a thread or not."""
    request = pb.ClassifyRequest(model="m", images=[pb.Image(encoded=bytes(size))])
    encoded = base64.b64encode(bytes(size)).decode()
    text = json.dumps({"model": "m", "images": [{"encoded": encoded}]}).encode()
    assert pb.ClassifyRequest.FromString(await to_request(CLASSIFY, text)) == request


@given(st.sampled_from([b"{", b"[", b",", b"{}", b"[[", b'{"a":']), st.integers(0, 3))
async def test_too_many_elements_of_any_kind_are_an_error(piece: bytes, more: int) -> None:
    """They are counted, not parsed."""
    text = piece * (MAX_JSON_ELEMENTS + 1) + b"]" * more
    with pytest.raises(Failure, match="has more than 4096 elements, the limit"):
        await to_request(CLASSIFY, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"%s"}',
        '{"%s":"a"}',
        '{"images":[{"%s":""}]}',
        '{"images":["%s"]}',
        '{"images":[{"encoded":"","text":"%s"}]}',
        '{"topK":"%s"}',
    ],
)
async def test_a_text_that_is_too_long_is_an_error(text: str) -> None:
    """Wherever it is: over gRPC it has the same limit."""
    long = "1" * (MAX_TEXT_BYTES + 1)
    with pytest.raises(
        Failure, match="a text of the request has 65537 characters, limit is 65536: shorten it"
    ):
        await to_request(CLASSIFY, text.replace("%s", long).encode())
    within = json.dumps({"model": long[1:]}).encode()
    assert pb.ClassifyRequest.FromString(await to_request(CLASSIFY, within)).model == long[1:]


@pytest.mark.parametrize("name", ["raw_input_contents", "rawInputContents"])
async def test_bytes_of_any_size_are_read_under_both_names(name: str) -> None:
    """As a list too."""
    text = json.dumps({name: [base64.b64encode(bytes(10**6)).decode()] * 2}).encode()
    request = oip.ModelInferRequest.FromString(await to_request(f"{OIP}ModelInfer", text))
    assert list(request.raw_input_contents) == [bytes(10**6)] * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"model":"a","model":"b"}', "two members of one name"),
        (b'{"model":"\xff"}', "can't decode byte 0xff"),
        (b'{"model":', "Expecting value"),
        (b'"model"', "not an object"),
        (b"[{}]", "not an object"),
        (b'{"topK":%s}' % (b"1" * 5000), "4300 digits"),
        (b'{"other":1}', "no field named"),
        (b'{"model":"\\ud800"}', "Unpaired surrogate|UTF-8"),
    ],
)
async def test_what_is_no_such_message_is_an_error(text: bytes, reason: str) -> None:
    """It says what is wrong."""
    with pytest.raises(Failure, match=f"cannot parse the request as lenserve.v1.ClassifyRequest.*({reason})"):
        await to_request(CLASSIFY, text)
