"""What goes to stdout and what to stderr."""

import sys

from rich.console import Console

# stdout is for results; progress, logs and errors go here.
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def print_line(text: str) -> None:
    """One line of result on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
