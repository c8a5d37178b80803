"""Standard streams that can always be used: none is closed, and none fails for a character it cannot show."""

import io
import os
import sys
from typing import TextIO, cast

# Where a stream is closed, the next file or connection that is opened takes its number: clients would receive
# what libraries print. Results must fail as on a closed stream, so stdout gets a file that cannot be written.
_NULL_FLAGS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)
_MODES = ("r", "w", "w")


def repair_standard_streams() -> None:
    """Open closed standard streams on the null device, and let the others escape what they cannot show."""
    for descriptor, flags in enumerate(_NULL_FLAGS):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, flags)  # takes the lowest number that is free
            os.set_inheritable(opened, True)  # noqa: FBT003 - its only option
    sys.stdin = _usable(sys.stdin, 0)
    sys.stdout = _usable(sys.stdout, 1)
    sys.stderr = _usable(sys.stderr, 2)


def can_show(text: str) -> bool:
    """Whether stdout has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _usable(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # Python found it closed
        mode = _MODES[descriptor]
        opened = open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - to the end
        return cast("TextIO", opened)
    if descriptor and isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
