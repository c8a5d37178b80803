"""Fields that are written as bytes are what protobuf reads."""

import pytest

from serving.pb.inference import grpc_service_pb2 as pb
from serving.rpc.open_inference.wire import field


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**21])
def test_a_field_is_read_as_it_was_written(length: int) -> None:
    """Whatever its length takes to be told."""
    value = b"x" * length

    response = pb.ModelInferResponse.FromString(field(6, value) + field(1, b"colours"))

    assert list(response.raw_output_contents) == [value]
    assert response.model_name == "colours"


def test_a_number_that_takes_two_bytes_is_told_too() -> None:
    """Fields that nobody knows are kept by protobuf, and written again."""
    message = pb.ModelInferResponse.FromString(field(2000, b"later"))

    assert message.SerializeToString() == field(2000, b"later")
