"""Serializes protobuf fields: joining them is cheaper than building a message (encoding: protobuf.dev)."""

from functools import lru_cache

_LENGTH_DELIMITED = 2  # wire type
_TYPE_BITS = 3
_MORE = 0x80


def field(number: int, value: bytes) -> bytes:
    """Return a field that holds a string, bytes or a message. Joined fields form a serialized message."""
    return tag_and_length(number, len(value)) + value


@lru_cache(maxsize=256)
def tag_and_length(number: int, length: int) -> bytes:
    """Return the bytes that precede the value of the field."""
    return _varint(number << _TYPE_BITS | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= _MORE:
        written.append(value & (_MORE - 1) | _MORE)
        value >>= 7
    written.append(value)
    return bytes(written)
