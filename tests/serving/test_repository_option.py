"""Commands in messages act on the repository that the message is about."""

import pytest

from serving.errors import BundleError
from serving.repository_option import named_in_errors, with_repository

COMMANDS = "`lenserve models promote a@1`, then `lenserve models history a`"


def test_each_command_gets_the_repository() -> None:
    """Quoted for a shell; other words and commands that have one stay."""
    assert with_repository(COMMANDS, "my models") == (
        "`lenserve models promote a@1 --repository 'my models'`, then "
        "`lenserve models history a --repository 'my models'`"
    )
    for text in ("`lenserve models show a --repository b`", "`lenserve serve`", "lenserve models show"):
        assert with_repository(text, "other") == text


def test_the_default_repository_is_not_named() -> None:
    """The command finds it."""
    assert with_repository(COMMANDS, "repository") == COMMANDS


def test_errors_get_it_too() -> None:
    """They keep their type."""
    message = r"`lenserve models history a --repository other`$"
    with pytest.raises(BundleError, match=message), named_in_errors("other"):
        raise BundleError(COMMANDS)
