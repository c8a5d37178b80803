"""Output to stdout and stderr."""

import io
import os
import sys

from rich.console import Console, RenderableType

# stdout is for results; stderr for progress, logs and errors.
stderr = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)  # a label may be :b:

_UNLIMITED = 100_000  # characters: wider than any row


class OutputFailed(Exception):
    """A result cannot be written to stdout, for example because it is a file on a full disk."""


def print_line(text: str) -> None:
    """Write one line of a result to stdout, and flush it.

    Raises:
        OutputFailed: it cannot be written.
        BrokenPipeError: the reader has closed it.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"the result cannot be written to stdout: {error.strerror}") from error


def discard_output() -> None:
    """Send the buffered rest of stdout nowhere, since Python would fail to flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_table(table: RenderableType) -> None:
    """Print a table on stdout, as wide as the terminal; in a pipe or a file, as wide as its longest row."""
    if sys.stdout.isatty():
        Console(emoji=False).print(table)
        return
    text = io.StringIO()
    Console(file=text, width=_UNLIMITED, emoji=False).print(table)
    print_line("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
