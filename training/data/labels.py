"""Names of classes, and array types of labels and of indices into a split."""

import unicodedata

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

# Invisible, but part of words in Persian and in Indian languages, and of emoji.
_JOINERS = "\u200c\u200d"


def label_named(name: str) -> str:
    """The label that a directory or a setting names.

    macOS writes accents as separate characters (NFD), Linux and Windows do not (NFC): the two look the same,
    and are one label.
    """
    return unicodedata.normalize("NFC", name)


def is_label(name: str) -> bool:
    """Whether a name is one visible line: not empty, no space at its ends, no control characters, UTF-8."""
    visible = all(c.isprintable() or c in _JOINERS for c in name)
    return bool(name) and name == name.strip() and visible
