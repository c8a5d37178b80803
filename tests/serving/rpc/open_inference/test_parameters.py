"""Parameters of inference requests: applied, rejected or ignored."""

import math
import time
from typing import Any

import pytest

from serving.errors import InvalidRequest
from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.parameters import decode_scheduling
from serving.rpc.open_inference.requests import InferRequest, RequestReader


def _request(**parameters: dict[str, Any]) -> InferRequest:
    message = pb.ModelInferRequest(
        model_name="colours",
        parameters={name: pb.InferParameter(**value) for name, value in parameters.items()},
    )
    return RequestReader().read(message.SerializeToString())


def test_without_parameters_the_calls_deadline_applies() -> None:
    """The priority is the default."""
    assert decode_scheduling(_request(), 7.0) == (7.0, 0)


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_a_timeout_in_microseconds_shortens_the_deadline(kind: str) -> None:
    """Clients send both types of number. A timeout after the call's deadline changes nothing."""
    before_s = time.monotonic()
    deadline_s, _ = decode_scheduling(_request(timeout={kind: 2_000_000}), math.inf)
    after_s = time.monotonic()

    assert before_s + 2 <= deadline_s <= after_s + 2
    assert decode_scheduling(_request(timeout={kind: 2_000_000}), before_s + 1)[0] == before_s + 1


def test_a_timeout_of_zero_means_no_timeout() -> None:
    """As in Triton, whose clients send 0."""
    assert decode_scheduling(_request(timeout={"int64_param": 0}), math.inf)[0] == math.inf


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_a_priority_is_read(kind: str) -> None:
    """Older clients send it signed."""
    assert decode_scheduling(_request(priority={kind: 3}), 1.0)[1] == 3


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
def test_a_number_of_another_type_or_sign_is_rejected(name: str, value: dict[str, Any], message: str) -> None:
    """The message has the parameter, and the expected and the actual type or value."""
    with pytest.raises(InvalidRequest, match=f"{name!r} parameter, {message}"):
        decode_scheduling(_request(**{name: value}), math.inf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", {"int64_param": 7}),
        ("sequence_id", {"string_param": "a"}),
        ("sequence_start", {"bool_param": True}),
        ("sequence_end", {"bool_param": True}),
    ],
)
def test_sequences_are_rejected(name: str, value: dict[str, Any]) -> None:
    """A classifier keeps no state between requests, and the message says so."""
    with pytest.raises(InvalidRequest, match=f"{name!r} makes the request part of a sequence"):
        decode_scheduling(_request(**{name: value}), math.inf)


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
    """Including a sequence id of 0, which means no sequence: some clients always send it."""
    assert decode_scheduling(_request(**{name: value}), 1.0) == (1.0, 0)
