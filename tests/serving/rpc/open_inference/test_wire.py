"""Protobuf parses the fields that we serialize."""

import pytest

from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.wire import field


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**21])
def test_a_field_round_trips(length: int) -> None:
    """With lengths of one, two, three and four bytes."""
    value = b"x" * length

    response = pb.ModelInferResponse.FromString(field(6, value) + field(1, b"colours"))

    assert list(response.raw_output_contents) == [value]
    assert response.model_name == "colours"


def test_a_field_number_of_two_bytes_round_trips() -> None:
    """Protobuf keeps unknown fields and serializes them again."""
    message = pb.ModelInferResponse.FromString(field(2000, b"later"))

    assert message.SerializeToString() == field(2000, b"later")
