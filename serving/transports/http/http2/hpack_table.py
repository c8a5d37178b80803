"""HPACK's tables of a decoder: fields that blocks refer to by a number (RFC 7541, section 2.3).

hpack's own table keeps a tuple and two byte strings per field. Here a field is one byte string: thousands of
clients can fill their tables (the attack remembered-heads of docs/reliability.md).
"""

from hpack.exceptions import InvalidTableIndexError
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]

FIELD_BYTES = 32  # RFC 7541, section 4.1: each field counts as that many bytes more
DEFAULT_TABLE_BYTES = 4096  # RFC 9113, section 6.5.2: more only if the server announces more

_STATIC: tuple[Field, ...] = HeaderTable.STATIC_TABLE  # RFC 7541, appendix A
# Between name and value. Where it is in a name too, the field falls into other parts, but both have an
# invalid character, before and after: RFC 9113, section 8.2.1.
_END_OF_NAME = b"\0"


class FieldTable:
    """The static table, and behind it the fields that a client has added, the newest first."""

    def __init__(self) -> None:
        self._added: list[bytes] = []  # the newest last
        self._size_bytes = 0
        self._max_bytes = DEFAULT_TABLE_BYTES

    def field(self, index: int) -> Field:
        """Return a field by its number, from 1 on.

        Raises:
            InvalidTableIndexError: no field has it.
        """
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        position = index - len(_STATIC)
        if not 0 < position <= len(self._added):
            raise InvalidTableIndexError(f"the table has no field {index}")
        name, _, value = self._added[-position].partition(_END_OF_NAME)
        return name, value

    def add(self, name: bytes, value: bytes) -> None:
        """Add a field, and drop the oldest ones until all fit: RFC 7541, section 4.4."""
        self._added.append(name + _END_OF_NAME + value)
        self._size_bytes += len(name) + len(value) + FIELD_BYTES
        self._drop()

    def resize(self, max_bytes: int) -> None:
        """Change the limit, and drop the oldest fields that are beyond it: RFC 7541, section 4.3."""
        self._max_bytes = max_bytes
        self._drop()

    def _drop(self) -> None:
        count = 0
        while self._size_bytes > self._max_bytes:
            self._size_bytes -= len(self._added[count]) - len(_END_OF_NAME) + FIELD_BYTES
            count += 1
        del self._added[:count]
