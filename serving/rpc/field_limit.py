"""Counts the fields of a serialized protobuf message before it is parsed (encoding: protobuf.dev).

Two bytes of a message become an object of 100 bytes or more: 16 MB of empty images took 1.7 GB and 3.9 s.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from serving.errors import InvalidRequest

DEFAULT_MAX_FIELDS = 1024
_FIELDS_OF_AN_IMAGE = 8  # decoded pixels have six
# A smaller message is parsed without counting: it has at most 8,192 fields, which takes 0.2 ms.
_SMALL_BYTES = 2**14
_MOST_LEADING_FIELDS = 32  # a name, a version, an id, some parameters
# Names, versions and other text. Images and tensors are bytes.
MAX_TEXT_BYTES = 2**16
# Numbers in `contents` of a tensor. They take 2 ns each to parse, and up to 8 bytes of memory for 1.
_MAX_PACKED_BYTES = 4 * 2**20

_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types
_FIXED_BYTES = {1: 8, 5: 4}  # by wire type
_TYPE_BITS, _TYPE_MASK = 3, 7
_MORE, _VALUE_MASK, _VALUE_BITS = 0x80, 0x7F, 7
_MAX_SHIFT = 63  # bits: a number has at most 10 bytes

M = TypeVar("M", bound=Message)


class _Text:
    """Marks fields that hold text."""


class _Packed:
    """Marks fields that hold many numbers."""


# By tag: the fields of a message that need more than a skip.
_Table = dict[
    int, Any
]  # "_Table | type[_Text] | type[_Packed]"; mypy has no recursive aliases for dict values


def max_fields_of(max_images: int) -> int:
    """Return the limit for requests with that many images."""
    return DEFAULT_MAX_FIELDS + _FIELDS_OF_AN_IMAGE * max_images


def limited_parser(message: type[M], max_fields: int = DEFAULT_MAX_FIELDS) -> Callable[[bytes], M]:
    """Return `FromString` with limits.

    Args:
        message: the type of the message.
        max_fields: maximum number of its fields, with those of its submessages; elements of repeated fields
            count one by one.

    Returns: a function that raises InvalidRequest beyond a limit, and DecodeError for other invalid bytes.
    """
    check = field_limit(message, max_fields)
    parse: Callable[[bytes], M] = message.FromString

    def parse_limited(data: bytes) -> M:
        if len(data) > _SMALL_BYTES:
            check(data)
        return parse(data)

    return parse_limited


def field_limit(message: type[Message], max_fields: int) -> Callable[[bytes], None]:
    """Return a function that checks the limits of `limited_parser`: nothing in a small message."""
    descriptor: Any = message.DESCRIPTOR
    table = _table(descriptor)

    def check(data: bytes) -> None:
        if len(data) > _SMALL_BYTES:
            try:
                _Scan(data, max_fields).check(0, len(data), table)
            except IndexError as error:
                raise DecodeError("the message ends inside a field") from error

    return check


def _table(descriptor: Any) -> _Table:  # noqa: ANN401 - protobuf's types contradict each other
    table: _Table = {}
    for each in descriptor.fields:
        tag = each.number << _TYPE_BITS | _LENGTH_DELIMITED
        if each.type == FieldDescriptor.TYPE_MESSAGE:
            table[tag] = _table(each.message_type)
        elif each.type == FieldDescriptor.TYPE_STRING:
            table[tag] = _Text
        elif each.type != FieldDescriptor.TYPE_BYTES and each.is_repeated:
            table[tag] = _Packed
    return table


class _Scan:
    """One walk over the tags of a message. Payloads are skipped: the time depends on the limit only."""

    def __init__(self, data: bytes, max_fields: int) -> None:
        self._data = data
        self._max_fields = max_fields
        self._fields_left = max_fields
        self._packed_bytes_left = _MAX_PACKED_BYTES

    def check(self, at: int, end: int, table: _Table) -> None:
        """Check the fields of a message from byte `at` to byte `end`."""
        data = self._data
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise InvalidRequest(
                    f"the request of {len(data)} bytes has more than {self._max_fields} fields, the limit: "
                    "send fewer images or elements"
                )
            tag = data[at]
            at += 1
            if tag >= _MORE:
                tag, at = read_varint(data, at - 1)
            kind = tag & _TYPE_MASK
            if kind == _LENGTH_DELIMITED:
                length = data[at]
                at += 1
                if length >= _MORE:
                    length, at = read_varint(data, at - 1)
                if length > end - at:
                    raise DecodeError("a field is longer than its message")
                rule = table.get(tag)
                if rule is not None:
                    self._apply(rule, at, at + length)
                at += length
            else:
                at = self._skip(kind, at)
        if at > end:
            raise DecodeError("the message ends inside a field")

    def _skip(self, kind: int, at: int) -> int:
        """Return the byte after a number."""
        if kind == _VARINT:
            return at + 1 if self._data[at] < _MORE else read_varint(self._data, at)[1]
        if kind not in _FIXED_BYTES:
            raise DecodeError("groups are not supported")
        return at + _FIXED_BYTES[kind]

    def _apply(self, rule: Any, start: int, end: int) -> None:  # noqa: ANN401 - see _Table
        if rule is _Text:
            if end - start > MAX_TEXT_BYTES:
                raise InvalidRequest(
                    f"a text of the request has {end - start} bytes, limit is {MAX_TEXT_BYTES}: shorten it"
                )
        elif rule is _Packed:
            self._packed_bytes_left -= end - start
            if self._packed_bytes_left < 0:
                raise InvalidRequest(
                    f"the request has more than {_MAX_PACKED_BYTES} bytes of numbers, the limit: "
                    "send tensors as bytes, in raw_input_contents"
                )
        else:
            self.check(start, end, rule)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a byte, and the byte after it.

    Raises:
        IndexError: the data ends before the number does.
        DecodeError: it has too many bytes.
    """
    value, shift = 0, 0
    while (byte := data[at]) >= _MORE:
        value |= (byte & _VALUE_MASK) << shift
        shift += _VALUE_BITS
        at += 1
        if shift > _MAX_SHIFT:
            raise DecodeError("a number has no end")
    return value | byte << shift, at + 1


def leading_fields(data: bytes, before: int) -> bytes | None:
    """Return the fields with lower numbers than this at the beginning of a message: a message too.

    Serializers write fields in the order of their numbers (protobuf.dev, "field order", does not promise it).

    Returns: None if it is not known where they end, because no other field follows, or not yet, or because
        they are more than 32.
    """
    at = 0
    try:
        for _ in range(_MOST_LEADING_FIELDS + 1):
            start = at
            tag, at = read_varint(data, at)
            if tag >> _TYPE_BITS >= before:
                return data[:start]
            value, at = read_varint(data, at)
            if tag & _TYPE_MASK == _LENGTH_DELIMITED:
                at += value
            elif tag & _TYPE_MASK != _VARINT:
                return None
    except (IndexError, DecodeError):
        pass
    return None
