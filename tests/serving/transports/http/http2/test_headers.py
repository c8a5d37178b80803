"""Headers of requests and answers: compatible with hpack, and checked as RFC 9113 demands."""

import time
import tracemalloc
from collections.abc import Iterable, Sequence

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transports.http.byte_budget import ByteBudget
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, HeadTooLarge, StreamBroken
from serving.transports.http.http2.headers import HeaderReader, write_fields, write_head

Pairs = list[tuple[bytes, bytes]]

MAX_BYTES = 2**16
PSEUDO: Pairs = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"here")]
# Around the lengths that take one more byte, and the size of hpack's table.
EDGES = [0, 1, 126, 127, 128, 254, 255, 256, 4096, 2**14, 2**14 + 127, 2**16]

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=20).map(str.encode)
# Names with a meaning in HTTP have tests of their own.
MEANT = {b"host", b"te", b"content-length", b"connection", b"proxy-connection", b"keep-alive", b"upgrade"}
plain_names = names.filter(lambda name: name not in MEANT and name != b"transfer-encoding")
lengths = st.integers(0, 300) | st.sampled_from(EDGES)
values = st.builds(lambda letter, length: letter * length, st.sampled_from([b"a", b"\xff", b" "]), lengths)


def _literals(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block that does not change the table."""
    return hpack.Encoder().encode([(name, value, True) for name, value in fields])


def _read(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, object]:
    return HeaderReader(max_bytes=MAX_BYTES).read(_literals(fields)).scope


@given(st.integers(100, 999), st.lists(st.tuples(names, values | st.binary(max_size=50)), max_size=6))
def test_hpack_reads_every_answer_as_it_was_written(status: int, fields: Pairs) -> None:
    """Names and values of any length, with any bytes, in order."""
    decoder = hpack.Decoder(max_header_list_size=2**24)
    read = decoder.decode(write_head(status, fields), raw=True)
    assert [tuple(pair) for pair in read] == [(b":status", b"%d" % status), *fields]
    assert [tuple(pair) for pair in decoder.decode(write_fields(fields), raw=True)] == fields
    assert not decoder.header_table.dynamic_entries


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Header blocks of one client: repeated, changed, never indexed, between resizes of the table."""
    encoder, blocks = hpack.Encoder(), []
    short = st.integers(0, 60).map(lambda length: b"v" * length)
    several = draw(st.lists(st.lists(st.tuples(plain_names, short), max_size=3), min_size=1, max_size=3))
    for _ in range(draw(st.integers(1, 12))):
        if draw(st.integers(0, 3)) == 0:
            encoder.header_table_size = draw(st.sampled_from([0, 40, 100, 1000, 4096]))
        secret = draw(st.booleans())
        fields = [(name, value, secret) for name, value in draw(st.sampled_from(several))]
        blocks.append(encoder.encode([*PSEUDO, *fields], huffman=draw(st.booleans())))
    return blocks


@given(conversations())
@settings(max_examples=200)
def test_a_cached_header_block_is_never_stale(blocks: Sequence[bytes]) -> None:
    """Every block decodes as in a decoder without a cache."""
    reader, decoder = HeaderReader(max_bytes=MAX_BYTES), hpack.Decoder()
    for block in blocks:
        _, _, _, (_, host), *fields = decoder.decode(block, raw=True)
        assert reader.read(block).scope["headers"] == [(b"host", host), *fields]


def test_a_change_of_the_table_changes_the_meaning_of_a_block() -> None:
    """The same byte refers to the newest entry: the cached request must not be returned."""
    reader = HeaderReader(max_bytes=MAX_BYTES)
    usual = _literals(PSEUDO)
    add, newest = b"\x40\x01%b\x01%b", b"\xbe"
    heads = [reader.read(usual + add % (letter, letter)) for letter in (b"a", b"b")]
    assert [head.scope["headers"][-1][0] for head in heads] == [b"a", b"b"]
    assert reader.read(usual + newest).scope["headers"][-1] == (b"b", b"b")
    reader.read_trailers(add % (b"c", b"c"))
    assert reader.read(usual + newest).scope["headers"][-1] == (b"c", b"c")
    reader.skip(b"\x20")  # resizes the table to 0
    with pytest.raises(ConnectionBroken):
        reader.read(usual + newest)


def test_a_request_becomes_a_scope_of_asgi() -> None:
    """The path is not unquoted, values are stripped, and the authority is the only host."""
    fields = [
        *PSEUDO[:2],
        (b":path", b"/a%20b?c=%20"),
        PSEUDO[3],
        (b"host", b"other"),
        (b"te", b" trailers\t"),
    ]
    scope = _read(fields)
    assert (scope["type"], scope["method"], scope["scheme"]) == ("http", "GET", "http")
    assert (scope["path"], scope["query_string"]) == ("/a%20b", b"c=%20")
    assert scope["headers"] == [(b"host", b"here"), (b"te", b"trailers")]


@pytest.mark.parametrize("lengths", [[], [b"0"], [b"12"], [b"12", b"12"]])
def test_a_valid_content_length_is_one_number(lengths: list[bytes]) -> None:
    """It may be repeated with the same value."""
    head = HeaderReader(max_bytes=MAX_BYTES).read(
        _literals([*PSEUDO, *((b"content-length", each) for each in lengths)])
    )
    assert head.content_length == (int(lengths[0]) if lengths else None)


MALFORMED: dict[str, Pairs] = {
    **{f"no {name.decode()}": [pair for pair in PSEUDO if pair[0] != name] for name, _ in PSEUDO[:3]},
    **{f"two of {pair[0].decode()}": [*PSEUDO, pair] for pair in PSEUDO},
    "an empty path": [*PSEUDO[:2], (b":path", b"")],
    "a pseudo field of answers": [*PSEUDO, (b":status", b"200")],
    "a pseudo field that nobody knows": [*PSEUDO, (b":other", b"1")],
    "a pseudo field after others": [*PSEUDO[:3], (b"a", b"1"), PSEUDO[3]],
    "a letter in upper case": [*PSEUDO, (b"Accept", b"1")],
    "an empty name": [*PSEUDO, (b"", b"1")],
    "a space in a name": [*PSEUDO, (b"a b", b"1")],
    "a colon in a name": [*PSEUDO, (b"a:b", b"1")],
    "a control character in a name": [*PSEUDO, (b"a\x7f", b"1")],
    "no ASCII in a name": [*PSEUDO, (b"a\xe4", b"1")],
    "NUL in a value": [*PSEUDO, (b"a", b"1\x002")],
    "CR in a value": [*PSEUDO, (b"a", b"1\r2")],
    "LF in a value": [*PSEUDO, (b"a", b"1\n2")],
    "LF in the path": [*PSEUDO[:2], (b":path", b"/\n"), PSEUDO[3]],
    **{
        f"{name.decode()}, which belongs to HTTP/1.1": [*PSEUDO, (name, b"x")]
        for name in (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
    },
    "te of something": [*PSEUDO, (b"te", b"gzip")],
    "te of more than trailers": [*PSEUDO, (b"te", b"trailers, gzip")],
    **{
        f"content-length {value!r}": [*PSEUDO, (b"content-length", value)]
        for value in (b"", b"-1", b"+1", b"1.0", b"0x1", b"1, 1", b"1" * 30, b"\xd9\xa1")
    },
    "two lengths": [*PSEUDO, (b"content-length", b"1"), (b"content-length", b"2")],
    "nothing at all": [],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_a_stream_error(fields: Pairs) -> None:
    """PROTOCOL_ERROR, each time; the next request is read. RFC 9113, section 8.1.1."""
    reader = HeaderReader(max_bytes=MAX_BYTES)
    for _ in range(2):
        with pytest.raises(StreamBroken) as caught:
            reader.read(_literals(fields))
        assert caught.value.code is ErrorCode.PROTOCOL_ERROR
    assert reader.read(_literals(PSEUDO)).scope["path"] == "/a"


EXTRA = {
    "fields of one byte": b"\x90" * 900,
    "references to one long field": b"\xbe" * 17,
    "literals": _literals([(b"a", b"b" * 200)] * 101),
    "a literal in Huffman code": hpack.Encoder().encode([(b"a", b"1" * 17_000, True)]),
    "empty names": b"\0\0\0" * 101,
}
ADD = b"\x40\x01%b\x01%b"
NEWEST = b"\xbe"


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
@pytest.mark.parametrize("is_trailers", [True, False])
def test_a_head_over_a_limit_is_refused_and_later_blocks_are_decoded(
    extra: bytes, *, is_trailers: bool
) -> None:
    """Fields before and after the limit add to the table: the next block refers to them."""
    reader = HeaderReader(max_fields=100, max_bytes=2**14)
    reader.skip(b"\x40\x01a" + b"\x7f\x81\x1e" + b"x" * 3968)
    read = reader.read_trailers if is_trailers else reader.read
    block = b"" if is_trailers else _literals(PSEUDO)
    with pytest.raises(HeadTooLarge):
        read(block + extra + ADD % (b"b", b"c") + b"\x90" + ADD % (b"d", b"e") + b"\x90")
    assert reader.read(_literals(PSEUDO) + b"\xbe\xbf").scope["headers"][1:] == [(b"d", b"e"), (b"b", b"c")]


def test_a_head_within_the_limits_is_read() -> None:
    """Exactly 100 fields."""
    fields = [*PSEUDO, *((b"a", b"%d" % number) for number in range(96))]
    assert len(HeaderReader().read(_literals(fields)).scope["headers"]) == 97
    with pytest.raises(HeadTooLarge, match="more than 100 fields or 16384 bytes"):
        HeaderReader().read(_literals([*fields, (b"b", b"")]))


def test_the_heads_that_are_kept_for_a_client_take_little_memory() -> None:
    """Thousands of connections may each send many different heads of many fields."""
    reader = HeaderReader()
    blocks = [_literals([*PSEUDO, (b"n", b"%d" % number)]) + b"\x90" * 90 for number in range(200)]
    tracemalloc.start()
    for block in blocks:
        reader.read(block)
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 50_000


def test_refusing_a_head_of_one_byte_references_costs_little() -> None:
    """2,000 heads of 900 references take less than a second; hpack needs 3."""
    reader, block = HeaderReader(), _literals(PSEUDO) + b"\x90" * 900
    started_s = time.process_time()
    for _ in range(2000):
        with pytest.raises(HeadTooLarge):
            reader.read(block)
    assert time.process_time() - started_s < 1


BROKEN_BLOCKS = {
    "an index of 0": b"\x80",
    "an index beyond the table": b"\xbf",
    "a name beyond the table": b"\x7f\x00\x01a",
    "a large integer": b"\xff" + b"\x80" * 9,
    "no value": b"\x00\x01a",
    "a value cut off": b"\x00\x01a\x02b",
    "a name cut off": b"\x40\x05a",
    "invalid Huffman code": b"\x40\x01a\x81\x00",
    "a resize in the middle": b"\x90\x20",
}


@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("broken", BROKEN_BLOCKS.values(), ids=BROKEN_BLOCKS)
def test_invalid_hpack_is_an_error_of_the_connection(broken: bytes, *, is_over: bool) -> None:
    """COMPRESSION_ERROR, also behind the limit of fields."""
    with pytest.raises(ConnectionBroken) as caught:
        HeaderReader().read(_literals(PSEUDO) + b"\x90" * 200 * is_over + broken)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_name_with_nul_is_malformed_each_time_it_is_referred_to() -> None:
    """The table keeps name and value in one piece, with a NUL between them."""
    encoder = hpack.Encoder()
    reader = HeaderReader()
    for _ in range(2):
        block = encoder.encode([*PSEUDO, (b"a\0b", b"c")])
        with pytest.raises(StreamBroken, match=r"is not a valid field name|contains NUL"):
            reader.read(block)
    assert len(block) < len(PSEUDO) + 5  # only references


@pytest.mark.parametrize("name", [b":path", b"Upper", b"", b"a b", b"connection"])
def test_malformed_trailers_are_a_stream_error(name: bytes) -> None:
    """The same rules as for requests, and no pseudo-header fields: RFC 9113, section 8.1."""
    reader = HeaderReader()
    with pytest.raises(StreamBroken) as caught:
        reader.read_trailers(_literals([(name, b"/")]))
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR
    reader.read_trailers(_literals([(b"grpc-status", b"0")]))


@given(st.lists(st.binary(max_size=60) | st.binary(max_size=20).map((_literals(PSEUDO)).__add__), max_size=6))
@settings(max_examples=300)
def test_random_bytes_raise_documented_errors_only(blocks: Sequence[bytes]) -> None:
    """A stream error, or a connection error of compression or size."""
    reader = HeaderReader(max_bytes=MAX_BYTES)
    for block in blocks:
        try:
            reader.read(block)
        except StreamBroken as broken:
            assert broken.code is ErrorCode.PROTOCOL_ERROR  # noqa: PT017 - most blocks may do either
        except ConnectionBroken as broken:
            assert broken.code in {ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM}  # noqa: PT017
            return


def test_the_heads_that_all_connections_keep_have_a_limit() -> None:
    """8,192 connections kept 330 MB, without a token; what a connection kept is free when it forgets."""
    budget = ByteBudget(0)
    readers = [HeaderReader(budget=budget) for _ in range(1000)]
    for reader in readers:
        for number in range(4):
            fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/%d" % number)]
            reader.read(_literals([*fields, *[(b"a", b"b")] * 30]))
    assert budget.kept_fields == 2**16 // 30 * 30
    for reader in readers:
        reader.forget()
    assert budget.kept_fields == 0
