"""Random changes of serialized protobuf messages, field by field (encoding: protobuf.dev)."""

from random import Random
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from tests.fuzz.mutations import blob, mutate, number

_VARINT, _I64, _LEN, _START_GROUP, _END_GROUP, _I32 = range(6)
_MOST_DEPTH = 5


class _Field(NamedTuple):
    number: int
    kind: int
    value: int | bytes


def varint(value: int) -> bytes:
    """Encode a number of up to 64 bits."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def mutate_message(random: Random, data: bytes) -> bytes:
    """Return a serialized message with a few changes, of its fields or of its bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        fields = _parse(data)
        data = mutate(random, data) if not fields or random.random() < 0.2 else _change(random, fields, 0)
    return data


def random_message(random: Random, descriptor: Any, depth: int = 0) -> bytes:  # noqa: ANN401 - two kinds
    """Return a message of a type, with some of its fields and values of any size."""
    written = []
    for field in descriptor.fields:
        if random.random() < 0.5:
            continue
        count = random.choice((1, 1, 2, 3)) if field.is_repeated else 1
        written += [_random_field(random, field, depth) for _ in range(count)]
    return b"".join(written)


def _random_field(random: Random, field: FieldDescriptor, depth: int) -> bytes:
    if field.message_type is not None:
        value = random_message(random, field.message_type, depth + 1) if depth < _MOST_DEPTH else b""
        return _write(_Field(field.number, _LEN, value))
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return _write(
            _Field(field.number, _LEN, random.choice((b"", b"colours", b"image", b"UINT8", blob(random))))
        )
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32):
        return _write(_Field(field.number, _I32, random.randbytes(4)))
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64):
        return _write(_Field(field.number, _I64, random.randbytes(8)))
    return _write(_Field(field.number, _VARINT, number(random) % 2**64))


def _change(random: Random, fields: list[_Field], depth: int) -> bytes:
    place = random.randrange(len(fields))
    field = fields[place]
    choice = random.random()
    if choice < 0.5:
        fields[place] = field._replace(value=_other_value(random, field, depth))
    elif choice < 0.6:
        del fields[place]
    elif choice < 0.7:
        fields[place:place] = [field] * random.choice((1, 1, 2, 20, 200))
    elif choice < 0.8:
        fields[place] = field._replace(number=random.choice((0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 2**29 - 1)))
    elif choice < 0.9:
        random.shuffle(fields)
    else:
        return _lie(random, fields, place)
    return b"".join(map(_write, fields))


def _other_value(random: Random, field: _Field, depth: int) -> int | bytes:
    if isinstance(field.value, int):
        return number(random) % 2**64
    if field.kind != _LEN:
        return random.randbytes(len(field.value))
    inner = _parse(field.value) if depth < _MOST_DEPTH else None
    if inner and random.random() < 0.7:
        return _change(random, inner, depth + 1)
    return mutate(random, field.value, most=2) if random.random() < 0.7 else blob(random)


def _lie(random: Random, fields: list[_Field], place: int) -> bytes:
    """Write a field with a wrong type, or a length that is not its own."""
    before, after = fields[:place], fields[place + 1 :]
    kind = random.choice((_VARINT, _I64, _LEN, _START_GROUP, _END_GROUP, _I32, 6, 7))
    body = varint(number(random) % 2**64) + blob(random)
    lie = varint(fields[place].number << 3 | kind) + body
    return b"".join([*map(_write, before), lie, *map(_write, after)])


def _write(field: _Field) -> bytes:
    tag = varint(field.number << 3 | field.kind)
    if isinstance(field.value, int):
        return tag + varint(field.value)
    return tag + (varint(len(field.value)) if field.kind == _LEN else b"") + field.value


def _parse(data: bytes) -> list[_Field] | None:
    """Return the fields; None if the bytes are not a message."""
    fields, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        elif kind in (_I64, _I32, _LEN):
            length = 8 if kind == _I64 else 4
            if kind == _LEN:
                length, at = _read_varint(data, at)
            value = data[at : at + length]
            at += length
        else:
            return None
        if at < 0 or at > len(data):
            return None
        fields.append(_Field(tag >> 3, kind, value))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number, and the position after it, which is beyond the end if the number is cut off."""
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value % 2**64, at
        shift += 7
    return value, len(data) + 1
