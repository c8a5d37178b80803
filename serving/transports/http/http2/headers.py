"""Header fields: of requests read and checked (RFC 9113, section 8), of answers written (RFC 7541)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import hpack
from hpack.table import HeaderTable

from serving.transports.http.asgi import EXTENSIONS
from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, StreamBroken

Fields = list[tuple[bytes, bytes]]

_OK, _OK_BLOCK = 200, b"\x88"  # an entry of HPACK's static table
_STATUS = b"\x08\x03"  # its name from there, and a value of three letters
_LONG, _MORE = 0x7F, 0x80  # lengths from here on take several bytes; of which all but the last have a bit
_MAX_LENGTH_DIGITS = 18  # what fits into 64 bits
_KEPT_BLOCKS, _MAX_KEPT_BYTES = 64, 1024
_RESIZE, _RESIZE_MASK = 0x20, 0xE0  # how a block begins that resizes the table
_MAX_RESIZE_BYTES = 16
_ONLY_RESIZES = bytes([_RESIZE] * _MAX_RESIZE_BYTES)

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
# They belong to one connection of HTTP/1.1.
_FORBIDDEN = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_NO_NAME = frozenset(range(0x21)) | frozenset(range(ord("A"), ord("Z") + 1)) | frozenset(range(0x7F, 0x100))
_NO_VALUE = (b"\0", b"\r", b"\n")


@dataclass(frozen=True, slots=True)
class Head:
    """What a request says before its body."""

    scope: dict[str, Any]  # of ASGI; requests that say the same share it
    content_length: int | None


class HeaderReader:
    """Reads the blocks of one connection in their order. A class because HPACK remembers."""

    def __init__(self, max_bytes: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=max_bytes)
        # Clients repeat themselves: a block that changes nothing in the table means the same, until one does.
        self._known: dict[bytes, Head] = {}
        self._decoder.header_table = self._table = _Table(self._known.clear)

    def read(self, block: bytes) -> Head:
        """The head of a request.

        Raises:
            ConnectionBroken: the block is no HPACK; what follows could not be read either.
            StreamBroken: the head is none of HTTP/2.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        changes = self._table.changes
        head = _head(self.decode(block))
        if self._table.changes == changes and len(block) <= _MAX_KEPT_BYTES:
            if len(self._known) >= _KEPT_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head

    def decode(self, block: bytes) -> Fields:
        """The fields of any block; trailers too must be read, for what they change in the table.

        Raises:
            ConnectionBroken: as `read` does.
        """
        if block and block[0] & _RESIZE_MASK == _RESIZE:
            self._table.change()
            if bytes(each & _RESIZE_MASK for each in block[:_MAX_RESIZE_BYTES]) == _ONLY_RESIZES:
                raise ConnectionBroken(ErrorCode.COMPRESSION_ERROR, "a block that only resizes the table")
        try:
            return self._decoder.decode(block, raw=True)  # type: ignore[return-value]  # raw gives bytes
        except hpack.OversizedHeaderListError as error:
            raise ConnectionBroken(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from error
        except hpack.HPACKError as error:
            raise ConnectionBroken(ErrorCode.COMPRESSION_ERROR, str(error)) from error


class _Table(HeaderTable):
    """HPACK's table, which tells of its changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self.changes = 0
        self._changed = changed

    def add(self, name: bytes, value: bytes) -> None:
        """As the library does; it also drops the oldest entries."""
        super().add(name, value)
        self.change()

    def change(self) -> None:
        """What was known of the table is so no more."""
        self.changes += 1
        self._changed()


def write_head(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The block of an answer. Nothing is put into the peer's table, so that no state is kept."""
    return (_OK_BLOCK if status == _OK else _STATUS + b"%03d" % status) + write_fields(fields)


def write_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The block of trailers."""
    return b"".join([part for name, value in fields for part in (_name(name), _length(len(value)), value)])


@lru_cache(maxsize=256)
def _name(name: bytes) -> bytes:
    return b"\0" + _length(len(name)) + name


@lru_cache(maxsize=256)
def _length(length: int) -> bytes:
    """Of a string that is written as it is: RFC 7541, section 5."""
    if length < _LONG:
        return bytes((length,))
    rest, prefix = length - _LONG, bytearray((_LONG,))
    while rest >= _MORE:
        prefix.append(rest & _LONG | _MORE)
        rest >>= 7
    prefix.append(rest)
    return bytes(prefix)


def _head(fields: Fields) -> Head:
    pseudo: dict[bytes, bytes] = {}
    regular: Fields = []
    for name, padded in fields:
        value = padded.strip(b" \t")  # as gRPC's clients may send it
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise _malformed(f"the pseudo field {name!r} is unknown, comes twice or too late")
            pseudo[name] = value
        else:
            regular.append((name, value))
        _check(name, value)
    try:
        method, scheme, target = pseudo[b":method"], pseudo[b":scheme"], pseudo[b":path"]
    except KeyError as missing:
        raise _malformed(f"there is no {missing.args[0]!r}") from None
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
        "path": path.decode("latin-1"),  # as it came: no method has a name that must be quoted
        "query_string": query,
        "headers": regular,
        "extensions": EXTENSIONS,
    }
    return Head(scope, _content_length(regular))


def _check(name: bytes, value: bytes) -> None:
    if not name or not _NO_NAME.isdisjoint(name) or b":" in name[1:]:
        raise _malformed(f"{name!r} is not a valid field name")
    if any(each in value for each in _NO_VALUE):
        raise _malformed(f"the value of {name!r} has a letter that it may not have")
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        raise _malformed(f"{name!r} does not belong to HTTP/2")


def _content_length(fields: Fields) -> int | None:
    told = {value for name, value in fields if name == b"content-length"}
    if not told:
        return None
    value = told.pop()
    if told or not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise _malformed("content-length is not a number, or is given twice")
    return int(value)


def _malformed(message: str) -> StreamBroken:
    return StreamBroken(ErrorCode.PROTOCOL_ERROR, message)
