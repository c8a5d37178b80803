"""What is a message and what is none: lengths, compression, cut frames, wrong headers."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

LIMIT = 2**20
GZIP = ("grpc-encoding", "gzip")
SAY = BytesValue(value=b"hello").SerializeToString()


def _frame(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


async def test_the_longest_message_passes_and_one_byte_more_is_refused_with_both_numbers(
    methods: Any, failure_of: Any
) -> None:
    """Of unary calls and of streams."""
    longest = BytesValue(value=bytes(LIMIT - 4))
    assert longest.ByteSize() == LIMIT
    too_long = BytesValue(value=bytes(LIMIT - 3))
    assert await methods.unary("Say")(longest) == longest
    assert [each async for each in methods.stream("Each")(iter([longest]))] == [longest]
    for call in (methods.unary("Say")(too_long), methods.stream("Each")(iter([too_long]))):
        error = await failure_of(call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search(rf"\b{LIMIT + 1}\b.*\b{LIMIT}\b", error.details() or "")


async def test_answers_are_not_limited(methods: Any) -> None:
    """The limit is for what comes in: it protects the server, and clients have one of their own."""
    (answer,) = [each async for each in methods.server_stream("Count")(StringValue(value=f"1 {20 * LIMIT}"))]
    assert len(answer.value) == 20 * LIMIT


async def test_a_message_is_refused_by_its_length_alone(served: Any, raw: Any) -> None:
    """Four gigabytes are announced and never sent: the answer does not wait for them."""
    async with raw(served.server.port) as connection:
        stream = await connection.open("Say")
        await connection.send(stream, struct.pack(">BI", 0, 2**32 - 1))
        reply = await connection.reply(stream)
    assert reply.code == "RESOURCE_EXHAUSTED"


async def test_a_bomb_costs_no_more_than_the_limit(served: Any, raw: Any) -> None:
    """A megabyte and a bit in a kilobyte: refused by what it would become."""
    bomb = gzip.compress(bytes(64 * LIMIT))
    assert len(bomb) < LIMIT
    async with raw(served.server.port) as connection:
        reply = await connection.call("Say", _frame(bomb, 1), GZIP)
    assert reply.code == "RESOURCE_EXHAUSTED"
    assert served.echo.calls["say"] == 0


@pytest.mark.parametrize("size", [1, 5, 7, 1000])
async def test_frames_may_be_cut_anywhere(served: Any, raw: Any, size: int) -> None:
    """Also inside the five bytes before a message."""
    body = _frame(BytesValue(value=bytes(range(40))).SerializeToString()) * 3
    async with raw(served.server.port) as connection:
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
    served: Any, raw: Any, encoding: str, squeeze: Callable[[bytes], bytes] | None
) -> None:
    """The flag of a message decides, not the header of its call."""
    body = _frame(SAY) + (_frame(squeeze(SAY), 1) if squeeze else b"") + _frame(SAY)
    async with raw(served.server.port) as connection:
        reply = await connection.call("Each", body, ("grpc-encoding", encoding))
    assert reply.code == "OK"
    assert served.metrics.registry.get_sample_value(
        "lenserve_requests_total", {"method": "/tests.Echo/Each", "code": "OK"}
    )
    assert reply.body.count(SAY) == (3 if squeeze else 2)


NO_MESSAGES = {
    "a flag that is none": (_frame(SAY, 2), ()),
    "no gzip at all": (_frame(b"no gzip", 1), (GZIP,)),
    "half a gzip": (_frame(gzip.compress(SAY)[:-9], 1), (GZIP,)),
    "compressed, and nobody said how": (_frame(gzip.compress(SAY), 1), ()),
    "cut in its length": (_frame(SAY)[:3], ()),
    "cut inside": (_frame(SAY)[:-1], ()),
    "no message": (b"", ()),
}


@pytest.mark.parametrize(
    ("method", "case"),
    [
        (method, case)
        for method in ("Say", "Each")
        for case in NO_MESSAGES
        if (method, case) != ("Each", "no message")
    ],
)
async def test_what_is_no_message_ends_its_call_alone(
    served: Any, raw: Any, differences: Any, method: str, case: str
) -> None:
    """It is INTERNAL, no function sees it, the connection goes on. A stream of no messages is a stream."""
    body, headers = NO_MESSAGES[case]
    async with raw(served.server.port) as connection:
        stream = await connection.open(method, *headers)
        await connection.send(stream, body, end=True)
        if case not in differences.unnoticed:
            assert (await connection.reply(stream)).code == "INTERNAL"
            assert served.echo.calls["say"] == 0
        assert (await connection.call("Say", _frame(SAY))).body == _frame(SAY)


async def test_an_unknown_compression_is_unimplemented_and_the_known_are_named(
    served: Any, raw: Any, differences: Any
) -> None:
    """So says doc/compression.md."""
    async with raw(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY, 1), ("grpc-encoding", "snappy"))
    assert reply.code == differences.unknown_compression
    told = reply.headers.get("grpc-accept-encoding", "")
    known = {each.strip() for each in told.split(",")}
    assert known == ({"identity", "deflate", "gzip"} if differences.tells_compressions else {""})


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;charset=utf-8"])
async def test_content_types_of_grpc_are_taken(served: Any, raw: Any, content_type: str) -> None:
    """With the format of the messages, or with a parameter."""
    async with raw(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("content-type", content_type))
    assert (reply.code, reply.body) == ("OK", _frame(SAY))
    assert reply.headers["content-type"].startswith("application/grpc")


@pytest.mark.parametrize("content_type", ["text/html", "application/grpcx", ""])
async def test_other_content_types_are_no_grpc(
    served: Any, raw: Any, differences: Any, content_type: str
) -> None:
    """HTTP says so with 415, and no function is called."""
    async with raw(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("content-type", content_type))
    assert reply.headers[":status"] == ("415" if differences.checks_content_type else "200")
    assert served.echo.calls["say"] == (0 if differences.checks_content_type else 1)


@pytest.mark.parametrize("told", ["", "S", "1", "1x", "-1S", "1.5S", "٣S"])
async def test_a_timeout_that_is_none_ends_its_call_alone(served: Any, raw: Any, told: str) -> None:
    """It is not taken for "no timeout"."""
    async with raw(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("grpc-timeout", told))
        assert reply.code != "OK"
        assert (await connection.call("Say", _frame(SAY))).body == _frame(SAY)


@pytest.mark.parametrize("unit", ["H", "M", "S", "m", "u", "n"])
async def test_timeouts_are_read_in_all_units(served: Any, raw: Any, unit: str) -> None:
    """Eight digits of each are time enough."""
    async with raw(served.server.port) as connection:
        reply = await connection.call("Say", _frame(SAY), ("grpc-timeout", "99999999" + unit))
    assert reply.code == "OK"


@pytest.mark.parametrize("authority", ["tests", "my_service:8001", "[::1]:8001", "127.0.0.1:1,127.0.0.1:2"])
async def test_authorities(served: Any, raw: Any, authority: str) -> None:
    """Names of hosts as people give them, and the list of addresses that some clients make of theirs."""
    async with raw(served.server.port) as connection:
        assert (await connection.call("Say", _frame(SAY), (":authority", authority))).code == "OK"


async def test_a_long_message_of_a_failure_still_arrives(methods: Any, failure_of: Any) -> None:
    """A client that names a model of ten thousand letters is told so in a header that it takes."""
    error = await failure_of(methods.unary("Fail")(StringValue(value="UnknownModel " + "ü" * 10_000)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("üüü")
    assert len(error.details()) < 1000


async def test_headers_beyond_the_limit_end_their_call_alone(
    served: Any, channels: Any, failure_of: Any
) -> None:
    """Nobody fills the memory with metadata."""
    methods = channels(served)
    error = await failure_of(methods.unary("Say")(BytesValue(), metadata=(("x", "y" * 200_000),)))
    assert error.code() is not grpc.StatusCode.OK
    assert await methods.unary("Say")(BytesValue(value=b"1")) == BytesValue(value=b"1")
