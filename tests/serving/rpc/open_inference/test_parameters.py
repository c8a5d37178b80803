"""Parameters of inference requests: what is heeded, refused and ignored."""

import math
import time
from typing import Any

import pytest

from serving.errors import InvalidRequest
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.parameters import decode_urgency
from serving.rpc.open_inference.requests import InferRequest, RequestReader


def _request(**parameters: dict[str, Any]) -> InferRequest:
    message = pb.ModelInferRequest(
        model_name="colours",
        parameters={name: pb.InferParameter(**value) for name, value in parameters.items()},
    )
    return RequestReader().read(message.SerializeToString())


def test_a_request_without_parameters_has_the_calls_deadline() -> None:
    """And the default priority."""
    assert decode_urgency(_request(), 7.0) == (7.0, 0)


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_a_timeout_in_microseconds_shortens_the_deadline(kind: str) -> None:
    """Both types of number that clients send; a timeout behind the call's deadline changes nothing."""
    before_s = time.monotonic()
    deadline_s, _ = decode_urgency(_request(timeout={kind: 2_000_000}), math.inf)
    after_s = time.monotonic()

    assert before_s + 2 <= deadline_s <= after_s + 2
    assert decode_urgency(_request(timeout={kind: 2_000_000}), before_s + 1)[0] == before_s + 1


def test_a_timeout_of_zero_is_none() -> None:
    """As in Triton, whose clients send it so."""
    assert decode_urgency(_request(timeout={"int64_param": 0}), math.inf)[0] == math.inf


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_a_priority_is_read(kind: str) -> None:
    """Older clients send it signed."""
    assert decode_urgency(_request(priority={kind: 3}), 1.0)[1] == 3


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"int64_param": -1}, "expected >= 0, got -1"),
        ({"string_param": "1"}, "expected int64_param or uint64_param, got string_param"),
        ({"bool_param": True}, "expected int64_param or uint64_param, got bool_param"),
        ({}, "expected int64_param or uint64_param, got None"),
    ],
)
def test_a_number_of_another_type_or_sign_is_refused(name: str, value: dict[str, Any], message: str) -> None:
    """The parameter is named, with what is expected and what came."""
    with pytest.raises(InvalidRequest, match=f"{name!r} parameter, {message}"):
        decode_urgency(_request(**{name: value}), math.inf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", {"int64_param": 7}),
        ("sequence_id", {"string_param": "a"}),
        ("sequence_start", {"bool_param": True}),
        ("sequence_end", {"bool_param": True}),
    ],
)
def test_sequences_are_refused(name: str, value: dict[str, Any]) -> None:
    """A classifier has no state that could tie requests together, and says so."""
    with pytest.raises(InvalidRequest, match=f"{name!r} makes a request part of a sequence"):
        decode_urgency(_request(**{name: value}), math.inf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", {"int64_param": 0}),
        ("sequence_start", {"bool_param": False}),
        ("binary_data_output", {"bool_param": True}),
        ("anything", {"double_param": 0.5}),
    ],
)
def test_other_parameters_are_ignored(name: str, value: dict[str, Any]) -> None:
    """Also a sequence that is none: some clients always send one of id 0."""
    assert decode_urgency(_request(**{name: value}), 1.0) == (1.0, 0)
