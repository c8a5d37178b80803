"""Limits on the fields of a message, which are counted before it is parsed."""

import tracemalloc
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.pb.inference import grpc_service_pb2 as oip
from serving.pb.lenserve.v1 import classifier_pb2 as pb
from serving.rpc.field_limit import leading_fields, limited_parser
from serving.rpc.open_inference.wire import field

MIB = 2**20
PADDING = field(100, bytes(2**14))  # an unknown field that makes a message large enough to be counted


def _parse(data: bytes, message: type[Message] = pb.ClassifyRequest, max_fields: int = 100) -> Message:
    return limited_parser(message, max_fields)(data)


BOMBS: dict[str, tuple[type[Message], bytes]] = {
    "empty images": (pb.ClassifyRequest, b"\x22\x00" * MIB),
    "an image of many fields": (pb.ClassifyRequest, field(4, b"\x0a\x00" * MIB)),
    "unknown numbers": (pb.ClassifyRequest, b"\x78\x01" * MIB),
    "unknown bytes": (pb.ClassifyRequest, b"\x7a\x00" * MIB),
    "tags that are longer than needed": (pb.ClassifyRequest, b"\xa2\x00\x00" * MIB),
    "unknown numbers of 4 bytes": (pb.ClassifyRequest, b"\x7d\0\0\0\0" * MIB),
    "unknown numbers of 8 bytes": (pb.ClassifyRequest, b"\x79\0\0\0\0\0\0\0\0" * MIB),
    "empty inputs": (oip.ModelInferRequest, b"\x2a\x00" * MIB),
    "empty outputs": (oip.ModelInferRequest, b"\x32\x00" * MIB),
    "parameters": (oip.ModelInferRequest, b"".join(field(4, field(1, b"%06d" % i)) for i in range(MIB // 8))),
    "parameters of an input": (oip.ModelInferRequest, field(5, b"\x22\x00" * MIB)),
    "fields of one parameter": (oip.ModelInferRequest, field(4, field(2, b"\x08\x01" * MIB))),
    "empty elements": (oip.ModelInferRequest, field(5, field(5, b"\x42\x00" * MIB))),
    "numbers one by one": (oip.ModelInferRequest, field(5, field(5, b"\x20\x01" * MIB))),
    "empty raw contents": (oip.ModelInferRequest, b"\x3a\x00" * MIB),
    "load parameters": (oip.RepositoryModelLoadRequest, b"\x1a\x00" * MIB),
    "a name again and again": (oip.ModelReadyRequest, b"\x0a\x01x" * MIB),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_many_small_fields_are_an_error_that_costs_nothing(bomb: str) -> None:
    """A megabyte of them becomes no objects, wherever they are. The message has the limit."""
    message, data = BOMBS[bomb]
    parse = limited_parser(message, 100)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="more than 100 fields"):
            parse(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


def test_the_limit_is_exact() -> None:
    """Fields of submessages count, too."""
    image = field(4, field(1, bytes(1000)))  # two fields
    data = image * 49 + PADDING  # 99
    assert len(data) > 2**14
    assert _parse(data + b"\x28\x01") == pb.ClassifyRequest.FromString(data + b"\x28\x01")
    with pytest.raises(InvalidRequest, match="fields"):
        _parse(data + b"\x28\x01" * 2)


@pytest.mark.parametrize("count", [1, 1000, 8000])
def test_a_small_message_is_not_counted(count: int) -> None:
    """It cannot have many fields."""
    assert len(_parse(b"\x22\x00" * count).images) == count  # type: ignore[attr-defined]


def test_large_payloads_are_skipped() -> None:
    """An image may have as many bytes as it likes."""
    request = pb.ClassifyRequest(model="m", images=[pb.Image(encoded=b"\x0a\x00" * MIB)] * 2)
    assert _parse(request.SerializeToString()) == request


def test_a_long_text_is_an_error() -> None:
    """A model's name would be repeated in messages."""
    with pytest.raises(InvalidRequest, match=r"70000 bytes, limit is 65536"):
        _parse(pb.ClassifyRequest(model="x" * 70_000).SerializeToString())


def test_typed_tensors_have_a_limit() -> None:
    """They take several times the memory of raw ones. The message says what to do."""
    contents = oip.InferTensorContents(uint_contents=bytes(5 * MIB))
    request = oip.ModelInferRequest(inputs=[{"contents": contents}])
    with pytest.raises(InvalidRequest, match="raw_input_contents"):
        _parse(request.SerializeToString(), oip.ModelInferRequest)
    del request.inputs[0].contents.uint_contents[MIB:]
    assert _parse(request.SerializeToString(), oip.ModelInferRequest) == request


@pytest.mark.parametrize(
    "data",
    [
        PADDING + b"\x22",
        PADDING + b"\x22\x05abc",
        PADDING + b"\x08",
        PADDING + b"\x0d\0\0\0",
        PADDING + b"\x80" * 20,
        PADDING + b"\x22" + b"\xff" * 20,
        PADDING + field(4, b"\x0a\x05abc") + b"0123456789",
        PADDING + b"\x0b\x0c",  # a group
        PADDING + b"\x0f",
    ],
)
def test_invalid_bytes_are_a_decode_error(data: bytes) -> None:
    """What is counted wrongly must not be parsed."""
    with pytest.raises(DecodeError):
        _parse(data)


@settings(max_examples=300, deadline=None)
@given(noise=st.one_of(st.binary(max_size=64), st.lists(st.binary(max_size=6), max_size=6).map(b"".join)))
def test_random_bytes_are_accepted_only_if_protobuf_accepts_them(noise: bytes) -> None:
    """And then the result is the same; only groups, which proto3 does not have, are refused in addition."""
    data = PADDING + noise

    def outcome(parse: Callable[[bytes], Message]) -> Message | None:
        try:
            return parse(data)
        except DecodeError:
            return None

    limited = outcome(limited_parser(pb.ClassifyRequest))
    assert limited is None or limited == outcome(pb.ClassifyRequest.FromString)


class TestLeadingFields:
    """What the first bytes of a large message say."""

    @settings(max_examples=50)
    @given(
        model=st.text(max_size=40),
        version=st.integers(1, 2**62),
        parts=st.integers(1, 3),
        received=st.integers(0, 200),
    )
    def test_they_are_a_message_without_its_contents(
        self, model: str, version: int, parts: int, received: int
    ) -> None:
        """As soon as the first byte of the contents is there, and not before."""
        named = pb.ClassifyRequest(model=model, version=version)
        names = named.SerializeToString()
        named.images.extend([pb.Image(encoded=bytes(100))] * parts)
        beginning = named.SerializeToString()[:received]
        found = leading_fields(beginning, 4)
        assert found == (names if len(beginning) > len(names) else None)

    @pytest.mark.parametrize(("count", "are_found"), [(32, True), (33, False)])
    def test_very_many_are_not_looked_for(self, count: int, *, are_found: bool) -> None:
        """4 KB of them took 1 ms, on each of 50,000 calls."""
        names = field(1, b"a") * count
        assert leading_fields(names + b"\x22\x00", 4) == (names if are_found else None)

    @given(data=st.binary(max_size=40))
    def test_other_bytes_have_none(self, data: bytes) -> None:
        """Or some that are a beginning of them: no error escapes."""
        found = leading_fields(data, 4)
        assert found is None or data.startswith(found)
