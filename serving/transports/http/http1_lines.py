"""h11, with limits on the lines of requests. Its own limit is only on the bytes of a line that is incomplete.

h11 parses lines with regular expressions that try every way to divide a run of blanks before a character that
is not allowed: its time grows with the square of the blanks. Such lines are refused before it parses them.
"""

import re

import h11
from h11._receivebuffer import ReceiveBuffer

# Of a head, and of trailers; the same as in HTTP/2.
MAX_FIELDS = 100
MAX_HEAD_BYTES = 2**14
_MAX_CHUNK_LINE_BYTES = 1024  # the size of a chunk, and extensions, which no client sends

_END_OF_HEAD = re.compile(rb"\n\r?\n")
# RFC 9110, section 5.5; h11 accepts other control characters.
_INVALID = re.compile(rb"[\0\v\f]|\r(?!\n)")
_BAD_REQUEST, _TOO_LARGE = 400, 431


def connection() -> h11.Connection:
    """Return the server's side of a connection, whose `next_event` raises RemoteProtocolError at a limit."""
    return _Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)


class _Connection(h11.Connection):
    """h11 has no parameter for its buffer."""

    def __init__(self, role: type[h11.SERVER], max_incomplete_event_size: int) -> None:
        super().__init__(role, max_incomplete_event_size)
        self._receive_buffer = _Lines()


class _Lines(ReceiveBuffer):
    """What was received and not yet parsed. h11 takes every line from here, also those in chunked bodies."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of a head or of trailers, or None if they are incomplete.

        Raises:
            LocalProtocolError: they are over a limit, or have an invalid character. h11 re-raises it as
                RemoteProtocolError.
        """
        end = _END_OF_HEAD.search(self._data, self._multiple_lines_search, MAX_HEAD_BYTES)
        if end is None and len(self._data) > MAX_HEAD_BYTES:
            raise _too_large(f"a head has more than {MAX_HEAD_BYTES} bytes, the limit")
        if end is not None:
            size = end.end()
            if self._data.count(b"\n", 0, size) > MAX_FIELDS + 2:
                raise _too_large(f"a head has more than {MAX_FIELDS} fields, the limit")
            if _INVALID.search(self._data, 0, size):
                raise h11.LocalProtocolError(
                    "a head has an invalid character", error_status_hint=_BAD_REQUEST
                )
        return super().maybe_extract_lines()

    def maybe_extract_next_line(self) -> bytearray | None:
        """Return the line before a chunk, or None if it is incomplete.

        Raises:
            LocalProtocolError: as in `maybe_extract_lines`.
        """
        line = super().maybe_extract_next_line()
        if line is not None and (len(line) > _MAX_CHUNK_LINE_BYTES or b"\n" in line[:-2]):
            raise h11.LocalProtocolError(
                f"the line before a chunk has {len(line)} bytes, limit is {_MAX_CHUNK_LINE_BYTES}; "
                "or a line feed inside",
                error_status_hint=_BAD_REQUEST,
            )
        return line


def _too_large(message: str) -> h11.LocalProtocolError:
    return h11.LocalProtocolError(message, error_status_hint=_TOO_LARGE)
