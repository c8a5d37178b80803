"""What the commands about the models of a repository share: options, output, how a version is named."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pydantic import Field

from serving.bundle import Repository
from serving.bundle.looks_like import is_version_name
from serving.bundle.manifest import NAME_PATTERN
from serving.bundle.operations import require_model, split_name, version_named
from serving.bundle.stored_repository import open_repository
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryCache, RepositoryLocation
from serving.commandline import DONE, Command, print_line, stderr
from serving.errors import BundleError, UsageError
from serving.repository_option import named_in_errors, with_repository


class RepositoryCommand(Command):
    """A command about the models of a repository."""

    repository: RepositoryLocation = Field(
        default=DEFAULT_REPOSITORY, description="directory of published models, or s3://bucket/models"
    )
    repository_cache: RepositoryCache = DEFAULT_CACHE
    as_json: bool = Field(default=False, alias="json", description="print one JSON object")

    @property
    def models(self) -> Repository:
        """The repository.

        Raises:
            UsageError: it is not a directory.
        """
        return open_repository(self.repository, self.repository_cache)

    def run(self) -> int:
        """Run the command.

        Raises:
            BundleError: the repository cannot be read or written.
        """
        try:
            with named_in_errors(self.repository):
                return self.act()
        except BrokenPipeError:  # of stdout
            raise
        except OSError as error:
            raise BundleError(
                f"the repository {self.repository} cannot be read or written: {error.strerror or error}; "
                "make room or correct its permissions, then repeat the command"
            ) from error

    def warn(self, text: str) -> None:
        """Print a warning, with the repository in the commands that it names; nothing if it is empty."""
        if text:
            stderr.print(f"! {with_repository(text, self.repository)}", markup=False)

    @abstractmethod
    def act(self) -> int:
        """Do what the command is for, and return its exit code."""

    def finish(self, result: Mapping[str, Any], text: str) -> int:
        """Print the result, and return the exit code."""
        print_line(json.dumps(result) if self.as_json else text)
        return DONE


class VersionCommand(RepositoryCommand):
    """A command about one version."""

    @classmethod
    def explain_arguments(cls, argv: Sequence[str]) -> str:
        """Say how a version is named."""
        meant = split_version(argv)
        return f"use {meant}" if meant else ""


def version_of(repository: Repository, name: str) -> tuple[str, int]:
    """Return the model and the version of MODEL@VERSION or MODEL@ALIAS.

    Raises:
        UsageError: the name is a model alone.
        BundleError: aliases.json is invalid.
        UnknownModel: the repository has no such model, version or alias.
    """
    model, revision = split_name(name)
    require_model(repository, model)
    if not revision:
        newest = repository.versions(model)[-1]
        raise UsageError(f"{name} names no version: use MODEL@VERSION, for example {name}@{newest}")
    return model, version_named(repository, model, revision)


def split_version(words: Sequence[str]) -> str:
    """Return MODEL@VERSION for the first MODEL VERSION among the words of a command line; "" without one."""
    before = ""
    for model, version in pairwise(words):
        is_of_option = before.startswith("--")  # its value
        if not is_of_option and NAME_PATTERN.fullmatch(model) and is_version_name(version):
            return f"{model}@{version}"
        before = model
    return ""
