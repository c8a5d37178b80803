"""Header fields: decodes and checks requests' (RFC 9113, section 8), encodes answers'."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from serving.transports.http.asgi import EXTENSIONS
from serving.transports.http.byte_budget import ByteBudget
from serving.transports.http.http2.frames import ErrorCode, HeadTooLarge, StreamBroken
from serving.transports.http.http2.hpack_decoder import Fields, HpackDecoder

MAX_FIELDS = 100  # of one request; gRPC clients send about 10, browsers behind two proxies 40
MAX_HEADER_BYTES = 2**14  # of one request, as RFC 9113 counts: decoded, plus 32 bytes per field

_OK, _OK_BLOCK = 200, b"\x88"  # an entry of HPACK's static table: the whole field
_STATUS = b"\x08\x03"  # name from the static table, then a value of three characters
_LONG, _MORE = 0x7F, 0x80  # longer lengths take several bytes; all but the last have the high bit set
_MAX_LENGTH_DIGITS = 18  # a content-length of this many digits fits into 64 bits
# Of one connection, 40 KB of memory, and of all, 10 MB: there can be thousands, each with other heads.
_KEPT_BLOCKS, _KEPT_FIELDS, _MAX_KEPT_BYTES = 16, 256, 512
_ALL_KEPT_FIELDS = 2**16

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
# RFC 9113, section 8.2.2: they belong to a connection of HTTP/1.1.
_FORBIDDEN = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_NOT_IN_NAMES = (
    frozenset(range(0x21)) | frozenset(range(ord("A"), ord("Z") + 1)) | frozenset(range(0x7F, 0x100))
)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request before its body."""

    scope: dict[str, Any]  # ASGI scope; shared by requests with the same headers
    content_length: int | None
    size_bytes: int  # of names and values


class HeaderReader:
    """Reads the header blocks of one connection, in order: each block can change the table for the next."""

    def __init__(
        self,
        max_fields: int = MAX_FIELDS,
        max_bytes: int = MAX_HEADER_BYTES,
        client: tuple[Any, ...] | None = None,
        budget: ByteBudget | None = None,
    ) -> None:
        self._client = client
        # Clients repeat header blocks. A block that did not change the table decodes to the same fields until
        # the table changes. Decoding it again would take 15 us; a LeNet-5 request takes 34 us in total.
        kept = self._kept = _KeptHeads(budget or ByteBudget(0))
        # Returns the head of a block that was read before, unless the table has changed since then.
        self.known = kept.heads.get
        self.forget = kept.forget  # when the connection is closed
        self._decoder = HpackDecoder(max_fields=max_fields, max_bytes=max_bytes, on_change=kept.forget)

    def read(self, block: bytes) -> RequestHead:
        """Decode and check the head of a request.

        Raises:
            ConnectionBroken: the block is not valid HPACK; later ones could not be decoded either.
            StreamBroken: the head is not valid in HTTP/2.
            HeadTooLarge: it has too many fields or bytes.
        """
        changes = self._decoder.changes
        head = _head(self._decoder.decode(block))
        head.scope["client"] = self._client
        if self._decoder.changes == changes and len(block) <= _MAX_KEPT_BYTES:
            self._kept.keep(block, head)
        return head

    def read_trailers(self, block: bytes) -> None:
        """Decode and check trailers: RFC 9113, section 8.1. Applications do not get them.

        Raises:
            ConnectionBroken: as in `read`.
            StreamBroken: as in `read`.
        """
        for name, value in self._decoder.decode(block):
            if name[:1] == b":":
                raise _malformed(f"trailers contain the pseudo-header field {name!r}")
            _check(name, value)

    def skip(self, block: bytes) -> None:
        """Decode a block that is not needed, because it can change the table.

        Raises:
            ConnectionBroken: as in `read`.
        """
        with suppress(HeadTooLarge):
            self._decoder.decode(block)


class _KeptHeads:
    """The heads that one connection keeps, by block."""

    def __init__(self, budget: ByteBudget) -> None:
        self.heads: dict[bytes, RequestHead] = {}
        self._fields = 0
        self._budget = budget  # of the process

    def keep(self, block: bytes, head: RequestHead) -> None:
        """Keep a head, if there is room for it."""
        fields = len(head.scope["headers"])
        if len(self.heads) >= _KEPT_BLOCKS or self._fields + fields > _KEPT_FIELDS:
            self.forget()
        if self._budget.kept_fields + fields <= _ALL_KEPT_FIELDS:
            self.heads[block] = head
            self._fields += fields
            self._budget.kept_fields += fields

    def forget(self) -> None:
        """Forget all of them."""
        self.heads.clear()
        self._budget.kept_fields -= self._fields
        self._fields = 0


def write_head(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the header block of an answer. It is stateless: it adds nothing to the client's table."""
    return (_OK_BLOCK if status == _OK else _STATUS + b"%03d" % status) + write_fields(fields)


def write_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the header block of trailers."""
    block = b""
    for name, value in fields:
        block += _before_value(name, len(value)) + value  # faster than a join: there are few
    return block


@lru_cache(maxsize=1024)  # saves 0.8 us of the 34 us of a LeNet-5 request
def _before_value(name: bytes, length: int) -> bytes:
    return b"\0" + _length(len(name)) + name + _length(length)


def _length(length: int) -> bytes:
    """Return the encoded length of a string without Huffman coding: RFC 7541, section 5."""
    if length < _LONG:
        return bytes((length,))
    rest, prefix = length - _LONG, bytearray((_LONG,))
    while rest >= _MORE:
        prefix.append(rest & _LONG | _MORE)
        rest >>= 7
    prefix.append(rest)
    return bytes(prefix)


def _head(fields: Fields) -> RequestHead:
    pseudo: dict[bytes, bytes] = {}
    regular: Fields = []
    for name, padded in fields:
        value = padded.strip(b" \t")  # gRPC clients may send spaces
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise _malformed(
                    f"the pseudo-header field {name!r} is unknown, repeated, or follows a regular field"
                )
            pseudo[name] = value
        else:
            regular.append((name, value))
        _check(name, value)
    try:
        method, scheme, target = pseudo[b":method"], pseudo[b":scheme"], pseudo[b":path"]
    except KeyError as missing:
        raise _malformed(f"{missing.args[0]!r} is missing") from None
    if not target:
        raise _malformed("the path is empty")
    path, _, query = target.partition(b"?")
    if b":authority" in pseudo:
        regular = [(b"host", pseudo[b":authority"]), *(pair for pair in regular if pair[0] != b"host")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": method.decode("latin-1"),
        "scheme": scheme.decode("latin-1"),
        "path": path.decode("latin-1"),  # not unquoted: RPC names need no quoting
        "query_string": query,
        "headers": regular,
        "extensions": EXTENSIONS,
    }
    size_bytes = sum(len(name) + len(value) for name, value in fields)
    return RequestHead(scope, _content_length(regular), size_bytes)


def _check(name: bytes, value: bytes) -> None:
    if not name or not _NOT_IN_NAMES.isdisjoint(name) or b":" in name[1:]:
        raise _malformed(f"{name!r} is not a valid field name")
    if b"\0" in value or b"\r" in value or b"\n" in value:  # a loop would take ten times as long
        raise _malformed(f"the value of {name!r} contains NUL, CR or LF")
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        raise _malformed(f"{name!r} is not allowed in HTTP/2")


def _content_length(fields: Fields) -> int | None:
    given = {value for name, value in fields if name == b"content-length"}
    if not given:
        return None
    value = given.pop()
    if given or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise _malformed("content-length is not a number, or has two values")
    return int(value)


def _malformed(message: str) -> StreamBroken:
    return StreamBroken(ErrorCode.PROTOCOL_ERROR, message)
