"""Valid and invalid messages: lengths, compression, split frames, headers."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from tests.serving.transports.conformance.methods import Channels, Methods, failure_of
from tests.serving.transports.conformance.served import Differences, Served
from tests.serving.transports.raw_connection import RawConnection

LIMIT = 2**20
GZIP = ("grpc-encoding", "gzip")
SAY = BytesValue(value=b"hello").SerializeToString()


def _frame(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


async def test_the_message_limit_is_exact_and_its_error_has_both_numbers(methods: Methods) -> None:
    """In unary calls and in streams."""
    longest = BytesValue(value=bytes(LIMIT - 4))
    assert longest.ByteSize() == LIMIT
    too_long = BytesValue(value=bytes(LIMIT - 3))
    assert await methods.unary("Say")(longest) == longest
    assert [each async for each in methods.stream("Each")(iter([longest]))] == [longest]
    for call in (methods.unary("Say")(too_long), methods.stream("Each")(iter([too_long]))):
        error = await failure_of(call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search(rf"\b{LIMIT + 1}\b.*\b{LIMIT}\b", error.details() or "")


async def test_answers_are_not_limited(methods: Methods) -> None:
    """The limit protects the server; clients have their own."""
    (answer,) = [each async for each in methods.server_stream("Count")(StringValue(value=f"1 {20 * LIMIT}"))]
    assert len(answer.value) == 20 * LIMIT


async def test_a_message_is_rejected_by_its_length_alone(served: Served) -> None:
    """Four gigabytes are announced and never sent; the answer comes at once."""
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open("Say")
        await connection.send(stream, struct.pack(">BI", 0, 2**32 - 1))
        reply = await connection.reply(stream)
    assert reply.code == "RESOURCE_EXHAUSTED"


async def test_a_decompression_bomb_costs_no_more_than_the_limit(served: Served) -> None:
    """A kilobyte that becomes more than a megabyte is rejected."""
    bomb = gzip.compress(bytes(64 * LIMIT))
    assert len(bomb) < LIMIT
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(bomb, 1), GZIP)
    assert reply.code == "RESOURCE_EXHAUSTED"
    assert served.echo.calls["say"] == 0


@pytest.mark.parametrize("size", [1, 5, 7, 1000])
async def test_frames_may_be_split_anywhere(served: Served, size: int) -> None:
    """Also inside the prefix of a message."""
    body = _frame(BytesValue(value=bytes(range(40))).SerializeToString()) * 3
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open("Each")
        for start in range(0, len(body), size):
            await connection.send(stream, body[start : start + size])
        connection.h2.end_stream(stream)
        await connection.flush()
        reply = await connection.reply(stream)
    assert (reply.code, reply.body) == ("OK", body)


@pytest.mark.parametrize(
    ("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", None)]
)
async def test_plain_and_compressed_messages_may_alternate(
    served: Served, encoding: str, squeeze: Callable[[bytes], bytes] | None
) -> None:
    """The flag of a message decides, not the header of the call."""
    body = _frame(SAY) + (_frame(squeeze(SAY), 1) if squeeze else b"") + _frame(SAY)
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Each", body, ("grpc-encoding", encoding))
    assert reply.code == "OK"
    assert served.metrics.registry.get_sample_value(
        "lenserve_requests_total", {"method": "/tests.Echo/Each", "code": "OK"}
    )
    assert reply.body.count(SAY) == (3 if squeeze else 2)


INVALID_MESSAGES = {
    "an invalid flag": (_frame(SAY, 2), ()),
    "no gzip at all": (_frame(b"no gzip", 1), (GZIP,)),
    "half a gzip": (_frame(gzip.compress(SAY)[:-9], 1), (GZIP,)),
    "compressed, and nobody said how": (_frame(gzip.compress(SAY), 1), ()),
    "cut off in its length": (_frame(SAY)[:3], ()),
    "cut off inside": (_frame(SAY)[:-1], ()),
}


@pytest.mark.parametrize(
    ("method", "case"),
    [(method, case) for method in ("Say", "Each") for case in INVALID_MESSAGES],
)
async def test_an_invalid_message_ends_only_its_call(
    served: Served, differences: Differences, method: str, case: str
) -> None:
    """The status is INTERNAL, no function sees it, the connection stays."""
    body, headers = INVALID_MESSAGES[case]
    async with RawConnection(served.server.port) as connection:
        stream = await connection.open(method, *headers)
        await connection.send(stream, body, end=True)
        if case not in differences.unnoticed:
            assert (await connection.reply(stream)).code == "INTERNAL"
            assert served.echo.calls["say"] == 0
        assert (await connection.call("Say", _frame(SAY))).body == _frame(SAY)


@pytest.mark.parametrize("count", [0, 2, 1000])
async def test_a_unary_call_with_another_number_of_messages_is_unimplemented(
    served: Served, differences: Differences, count: int
) -> None:
    """No function is called: gRPC's doc/statuscodes.md, request cardinality violation."""
    if not differences.counts_messages:
        pytest.skip("gRPC's core reads the first message only, and waits for one for ever")
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY) * count)
    assert reply.code == "UNIMPLEMENTED"
    assert served.echo.calls["say"] == 0


async def test_an_unknown_compression_is_unimplemented_and_known_ones_are_named(
    served: Served, differences: Differences
) -> None:
    """As in doc/compression.md."""
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY, 1), ("grpc-encoding", "snappy"))
    assert reply.code == differences.unknown_compression
    accepted = reply.headers.get("grpc-accept-encoding", "")
    known = {each.strip() for each in accepted.split(",")}
    assert known == ({"identity", "deflate", "gzip"} if differences.names_compressions else {""})


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;charset=utf-8"])
async def test_content_types_of_grpc_are_accepted(served: Served, content_type: str) -> None:
    """With a message format or a parameter."""
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("content-type", content_type))
    assert (reply.code, reply.body) == ("OK", _frame(SAY))
    assert reply.headers["content-type"].startswith("application/grpc")


@pytest.mark.parametrize("content_type", ["text/html", "application/grpcx", ""])
async def test_other_content_types_are_rejected(
    served: Served, differences: Differences, content_type: str
) -> None:
    """With HTTP status 415; no function is called."""
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("content-type", content_type))
    assert reply.headers[":status"] == ("415" if differences.checks_content_type else "200")
    assert served.echo.calls["say"] == (0 if differences.checks_content_type else 1)


@pytest.mark.parametrize("given", ["", "S", "1", "1x", "-1S", "1.5S", "٣S"])
async def test_an_invalid_timeout_ends_only_its_call(served: Served, given: str) -> None:
    """It is an error, not "no timeout"."""
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("grpc-timeout", given))
        assert reply.code != "OK"
        assert (await connection.call("Say", _frame(SAY))).body == _frame(SAY)


@pytest.mark.parametrize("unit", ["H", "M", "S", "m", "u", "n"])
async def test_timeouts_are_read_in_all_units(served: Served, unit: str) -> None:
    """Eight digits of each unit are long enough for the call."""
    async with RawConnection(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("grpc-timeout", "99999999" + unit))
    assert reply.code == "OK"


@pytest.mark.parametrize("authority", ["tests", "my_service:8001", "[::1]:8001", "127.0.0.1:1,127.0.0.1:2"])
async def test_authorities(served: Served, authority: str) -> None:
    """Host names, and the lists of addresses that some clients send."""
    async with RawConnection(served.server.port) as connection:
        assert (await connection.call("Say", _frame(SAY), (":authority", authority))).code == "OK"


async def test_a_long_error_message_arrives(methods: Methods) -> None:
    """A model name of ten thousand characters is shortened to fit into a header."""
    error = await failure_of(methods.unary("Fail")(StringValue(value="UnknownModel " + "ü" * 10_000)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("üüü")
    assert len(error.details()) < 1000


async def test_headers_over_the_limit_end_only_their_call(served: Served, channels: Channels) -> None:
    """Metadata cannot fill the memory."""
    methods = channels(served)
    error = await failure_of(methods.unary("Say")(BytesValue(), metadata=(("x", "y" * 200_000),)))
    assert error.code() is not grpc.StatusCode.OK
    assert await methods.unary("Say")(BytesValue(value=b"1")) == BytesValue(value=b"1")
