"""Reads text that people write: UTF-8, also with a byte order mark, and the UTF-16 that Windows has."""

import codecs
from pathlib import Path

from serving.limited_files import read_once

_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

MARK_BYTES = 4  # that `encoding_of` needs


def encoding_of(content: bytes) -> str:
    """Return the encoding that a byte order mark names: it removes the mark, and UTF-8 needs none."""
    for mark, encoding in _ENCODINGS.items():
        if content.startswith(mark) and len(content) > len(mark):
            return encoding
    return "utf-8-sig"


def decode_text(content: bytes) -> str:
    """Decode the content of a file, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16 with a mark.
    """
    return content.decode(encoding_of(content))


def read_text(path: Path) -> str:
    """Read a file, or a pipe.

    Raises:
        OSError: as `read_once`.
        UnicodeDecodeError: as in `decode_text`.
    """
    return decode_text(read_once(path))


def without_mark(content: bytes) -> bytes:
    """Return text as UTF-8 without a byte order mark; what is not text stays as it is, for its reader."""
    try:
        return decode_text(content).encode() if content.startswith(tuple(_ENCODINGS)) else content
    except UnicodeDecodeError:
        return content
