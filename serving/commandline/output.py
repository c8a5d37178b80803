"""Output to stdout and stderr."""

import sys

from rich.console import Console, RenderableType

# stdout is for results; stderr for progress, logs and errors.
stderr = Console(stderr=True, highlight=False, soft_wrap=True)

_UNLIMITED = 100_000  # characters: wider than any row


def print_line(text: str) -> None:
    """Write one line of a result to stdout, and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_table(table: RenderableType) -> None:
    """Print a table on stdout, as wide as the terminal; in a pipe or a file, as wide as its longest row."""
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_UNLIMITED)
    with console.capture() as captured:
        console.print(table)
    print_line("\n".join(line.rstrip() for line in captured.get().splitlines()))
