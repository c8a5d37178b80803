"""HPACK, decoding: header blocks -> fields, within bounds (RFC 7541).

hpack's own decoder stops at the first field beyond its bound. After that its table is not the client's: all
calls of the connection are lost. This one reads such a block to its end, without building its fields. It uses
hpack's static table and Huffman code.
"""

import re
from collections.abc import Callable

from hpack import HPACKError
from hpack.huffman_table import decode_huffman

from serving.transports.http.http2.frames import ConnectionBroken, ErrorCode, HeadTooLarge
from serving.transports.http.http2.hpack_table import DEFAULT_TABLE_BYTES, FIELD_BYTES, Field, FieldTable

Fields = list[Field]

_INDEXED, _ADDED, _RESIZE = 0x80, 0x40, 0x20  # first bits of an instruction; the others are literals
_INDEX_MASK, _ADDED_MASK, _RESIZE_MASK, _LITERAL_MASK = 0x7F, 0x3F, 0x1F, 0x0F
_HUFFMAN, _LENGTH_MASK = 0x80, 0x7F
_MAX_RESIZES = 16  # of one block; RFC 7541, section 4.2 needs two
_MAX_SHIFT = 28  # of an integer's last byte, in bits: no index or length is that large
_REFERENCES = re.compile(rb"[\x80-\xfe]+")  # fields of one byte


class HpackDecoder:
    """Decodes the header blocks of one connection, in order: each block can change the table for the next."""

    def __init__(self, *, max_fields: int, max_bytes: int, on_change: Callable[[], object]) -> None:
        """Start with an empty table.

        Args:
            max_fields: of a block.
            max_bytes: of a block's fields, as RFC 9113 counts: decoded, plus 32 bytes per field.
            on_change: called when the table changes.
        """
        self.changes = 0  # of the table
        self._max_fields = max_fields
        self._max_bytes = max_bytes
        self._on_change = on_change
        self._table = FieldTable()

    def decode(self, block: bytes) -> Fields:
        """Decode a block.

        Raises:
            ConnectionBroken: the block is not valid HPACK; later ones could not be decoded either.
            HeadTooLarge: the block has too many fields or bytes; the next one can be decoded.
        """
        try:
            return self._decode(block)
        except IndexError:
            raise _invalid("a header block is cut off") from None
        except HPACKError as error:
            raise _invalid(str(error)) from error

    def _decode(self, block: bytes) -> Fields:
        fields: Fields = []
        offset, end, left_bytes = self._resize(block), len(block), self._max_bytes
        while offset < end:
            first = block[offset]
            if first & _INDEXED:
                index, offset = _integer(block, offset, _INDEX_MASK)
                field = self._table.field(index)
            else:
                field, offset = self._literal(block, offset, first)
            fields.append(field)
            left_bytes -= FIELD_BYTES + len(field[0]) + len(field[1])
            if left_bytes < 0 or len(fields) > self._max_fields:
                self._skip(block, offset)
                raise HeadTooLarge(
                    f"the header has more than {self._max_fields} fields or {self._max_bytes} bytes, "
                    "the limits; send less metadata"
                )
        return fields

    def _skip(self, block: bytes, offset: int) -> None:
        """Read the rest of a block for what it adds to the table."""
        end = len(block)
        while offset < end:
            run = _REFERENCES.match(block, offset)
            if run is not None:
                offset = run.end()
                self._table.field(max(run[0]) & _INDEX_MASK)
                self._table.field(min(run[0]) & _INDEX_MASK)
                continue
            first = block[offset]
            if first & _INDEXED:
                index, offset = _integer(block, offset, _INDEX_MASK)
                self._table.field(index)
            elif first & _ADDED:
                _, offset = self._literal(block, offset, first)
            else:
                offset = self._skip_literal(block, offset, first)

    def _resize(self, block: bytes) -> int:
        """Change the size of the table; return where the fields begin."""
        offset = resizes = 0
        while offset < len(block) and block[offset] & (_INDEXED | _ADDED | _RESIZE) == _RESIZE:
            size_bytes, offset = _integer(block, offset, _RESIZE_MASK)
            resizes += 1
            if size_bytes > DEFAULT_TABLE_BYTES or resizes > _MAX_RESIZES:
                raise _invalid(
                    f"the table is resized to {size_bytes} bytes, limit is {DEFAULT_TABLE_BYTES}; "
                    f"or more than {_MAX_RESIZES} times"
                )
            self._table.resize(size_bytes)
            self._change()
        return offset

    def _literal(self, block: bytes, offset: int, first: int) -> tuple[Field, int]:
        """Return a literal field, and where the next one begins."""
        is_added = first & _ADDED
        index, offset = _integer(block, offset, _prefix_mask(first))
        if index:
            name = self._table.field(index)[0]
        else:
            name, offset = _string(block, offset)
        value, offset = _string(block, offset)
        if is_added:
            self._table.add(name, value)
            self._change()
        return (name, value), offset

    def _skip_literal(self, block: bytes, offset: int, first: int) -> int:
        index, offset = _integer(block, offset, _prefix_mask(first))
        if index:
            self._table.field(index)
        for _ in range(1 if index else 2):
            length, offset = _integer(block, offset, _LENGTH_MASK)
            offset += length
        if offset > len(block):
            raise IndexError
        return offset

    def _change(self) -> None:
        self.changes += 1
        self._on_change()


def _prefix_mask(first: int) -> int:
    """Return the bits of the index in a literal's first byte."""
    if first & _ADDED:
        return _ADDED_MASK
    if first & _RESIZE:
        raise _invalid("the table is resized after a field: that is only allowed at the start of a block")
    return _LITERAL_MASK


def _integer(block: bytes, offset: int, mask: int) -> tuple[int, int]:
    """Return an integer and the offset behind it: RFC 7541, section 5.1."""
    value = block[offset] & mask
    offset += 1
    if value < mask:
        return value, offset
    shift = 0
    while True:
        more = block[offset]
        offset += 1
        value += (more & _LENGTH_MASK) << shift
        if more == more & _LENGTH_MASK:
            return value, offset
        shift += 7
        if shift > _MAX_SHIFT:
            raise _invalid("an integer in a header block has more than 6 bytes")


def _string(block: bytes, offset: int) -> tuple[bytes, int]:
    """Return a string and the offset behind it: RFC 7541, section 5.2."""
    is_huffman = block[offset] & _HUFFMAN
    length, offset = _integer(block, offset, _LENGTH_MASK)
    end = offset + length
    if end > len(block):
        raise IndexError
    raw = block[offset:end]
    return decode_huffman(raw) if is_huffman else raw, end


def _invalid(message: str) -> ConnectionBroken:
    return ConnectionBroken(ErrorCode.COMPRESSION_ERROR, message)
