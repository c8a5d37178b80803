"""Adds `--repository` to the commands that messages name: without it they would change the default one."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from serving.bundle.urls import DEFAULT_REPOSITORY
from serving.errors import LenserveError

_COMMAND = re.compile(r"`(?P<command>lenserve models (?:(?!--repository)[^`])*)`")


def with_repository(text: str, repository: str) -> str:
    """Add a repository to each command of a text that names none, unless it is the default one."""
    if repository == DEFAULT_REPOSITORY:
        return text
    option = f"--repository {shlex.quote(repository)}"
    return _COMMAND.sub(lambda found: f"`{found['command']} {option}`", text)


@contextmanager
def named_in_errors(repository: str) -> Iterator[None]:
    """Add it to the messages of errors that leave the block."""
    try:
        yield
    except LenserveError as error:
        error.args = (with_repository(str(error), repository), *error.args[1:])
        raise
