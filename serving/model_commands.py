"""`lenserve models show|promote|rollback|alias|history|prune|remove`: what operators do with versions.

They work on the files of a repository, without a server: running servers notice the change.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from serving.bundle import STABLE_ALIAS, AliasChange, Repository
from serving.bundle.looks_like import version_number
from serving.bundle.operations import (
    history,
    prune,
    remove,
    remove_alias,
    remove_model,
    require_model,
    roll_back,
)
from serving.bundle.stored_repository import open_repository
from serving.bundle.urls import DEFAULT_CACHE, DEFAULT_REPOSITORY, RepositoryCache, RepositoryLocation
from serving.commandline import DONE, FAILED, Command, print_line, print_table, stderr
from serving.errors import BundleError, UnknownModel, UsageError
from serving.metrics.live_answers import LiveAnswers, live_answers
from serving.version_tables import all_versions, changes_table, facts, versions_side_by_side

if TYPE_CHECKING:
    from serving.bench.server_facts import Sample

_LABELS_IN_MESSAGE = 5

_Expect = Annotated[
    int | None,
    Field(
        ge=0,
        description="change the alias only if it names this version now; 0: only if it does not exist. Two "
        "operators who change one alias then do not overwrite each other",
    ),
]
_Reason = Annotated[str, Field(max_length=1000, description="why, for the history")]


class _RepositoryCommand(Command):
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
            return self.act()
        except BrokenPipeError:  # of stdout
            raise
        except OSError as error:
            raise BundleError(
                f"the repository {self.repository} cannot be read or written: {error.strerror or error}; "
                "make room or correct its permissions, then repeat the command"
            ) from error

    @abstractmethod
    def act(self) -> int:
        """Do what the command is for, and return its exit code."""

    def finish(self, result: Mapping[str, Any], text: str) -> int:
        """Print the result, and return the exit code."""
        print_line(json.dumps(result) if self.as_json else text)
        return DONE

    def finish_change(self, model: str, alias: str, change: AliasChange | None, version: int) -> int:
        """Print what became of an alias."""
        if change is None:
            result = {"model": model, "alias": alias, "version": version, "changed": False}
            return self.finish(result, f"{model}: {alias} already names version {version}")
        result = {"model": model, "changed": True, **change.model_dump(mode="json")}
        before = "did not exist" if change.before is None else f"named version {change.before}"
        return self.finish(result, f"{model}: {alias} names version {change.version}; before, it {before}")


class Show(_RepositoryCommand):
    """Show a model's versions, one of them, or several side by side: by whom, from what, how good."""

    example: ClassVar[str] = "lenserve models show lenet5-digits --repository repository"

    named: CliPositionalArg[list[str]] = Field(
        min_length=1, description="MODEL, MODEL@VERSION or MODEL@ALIAS; several versions are compared"
    )
    metrics_url: str | None = Field(
        default=None,
        description="/metrics of a server: adds what each version answered, and its drift",
    )

    def act(self) -> int:
        """Show; return 1 if a version cannot be trusted."""
        name, versions = self._versions()
        aliases = self.models.aliases(name)
        samples = None
        if self.metrics_url:
            from serving.bench.server_facts import read_metrics  # noqa: PLC0415 - it loads gRPC

            samples = read_metrics(self.metrics_url)
        rows = [_row(self.models, name, version, aliases, samples) for version in versions]
        if self.as_json:
            shown = {"model": name, "aliases": dict(aliases), "versions": rows}
            print_line(json.dumps(shown, default=LiveAnswers.to_json))
        elif "@" in self.named[0]:
            print_table(versions_side_by_side(rows))
        else:
            print_table(all_versions(rows))
        return FAILED if any("error" in row for row in rows) else DONE

    def _versions(self) -> tuple[str, list[int]]:
        """The model, and the versions to show, in their order."""
        if len(self.named) > 1:
            found = [_version(self.models, each) for each in self.named]
            models = list(dict.fromkeys(model for model, _ in found))
            if len(models) > 1:
                raise UsageError(f"{' and '.join(models)} are several models: compare versions of one")
            return models[0], [version for _, version in found]
        name, _, revision = self.named[0].partition("@")
        require_model(self.models, name)
        if revision:
            return name, [_number(self.models, name, revision)]
        return name, self.models.versions(name)[::-1]


class Promote(_RepositoryCommand):
    """Serve this version: point the alias `stable` at it, after its digests are verified."""

    example: ClassVar[str] = "lenserve models promote lenet5-digits@2 --repository repository"

    model: CliPositionalArg[str] = Field(description="MODEL@VERSION or MODEL@ALIAS")
    expect: _Expect = None
    reason: _Reason = ""

    def act(self) -> int:
        """Change the alias."""
        name, version = _version(self.models, self.model)
        labels = self.models.read(name, version).manifest.labels
        change = self.models.set_alias(name, STABLE_ALIAS, version, expect=self.expect, reason=self.reason)
        if change is not None and change.before is not None:
            _warn_of_other_labels(self.models, name, version, labels, change.before)
        return self.finish_change(name, STABLE_ALIAS, change, version)


class Rollback(_RepositoryCommand):
    """Go back to the version that the alias `stable` named before."""

    example: ClassVar[str] = "lenserve models rollback lenet5-digits --repository repository"

    model: CliPositionalArg[str] = Field(description="name of the model")
    alias: str = Field(default=STABLE_ALIAS, description="the alias to roll back")
    expect: _Expect = None
    reason: _Reason = ""

    def act(self) -> int:
        """Change the alias."""
        change = roll_back(self.models, self.model, self.alias, expect=self.expect, reason=self.reason)
        return self.finish_change(self.model, self.alias, change, change.version or 0)


class Alias(_RepositoryCommand):
    """Point an alias at a version, which is then served as MODEL@ALIAS; or remove the alias."""

    example: ClassVar[str] = "lenserve models alias lenet5-digits@2 canary --repository repository"

    model: CliPositionalArg[str] = Field(description="MODEL@VERSION; with --remove MODEL")
    alias: CliPositionalArg[str] = Field(description="name of the alias")
    remove: bool = Field(default=False, description="remove the alias")
    expect: _Expect = None
    reason: _Reason = ""

    def act(self) -> int:
        """Change the alias."""
        if self.remove:
            change = remove_alias(self.models, self.model, self.alias, expect=self.expect, reason=self.reason)
            result = {"model": self.model, "changed": True, **change.model_dump(mode="json")}
            text = f"{self.model}: {self.alias} is removed; it named version {change.before}"
            if self.alias == STABLE_ALIAS:
                text += f"; the newest version is served now: {self.models.versions(self.model)[-1]}"
            return self.finish(result, text)
        name, version = _version(self.models, self.model)
        self.models.read(name, version)
        set_to = self.models.set_alias(name, self.alias, version, expect=self.expect, reason=self.reason)
        return self.finish_change(name, self.alias, set_to, version)


class History(_RepositoryCommand):
    """List every change of a model's aliases: when, by whom, from which version to which, and why."""

    example: ClassVar[str] = "lenserve models history lenet5-digits --repository repository"

    model: CliPositionalArg[str] = Field(description="name of the model")

    def act(self) -> int:
        """List, oldest first."""
        changes = history(self.models, self.model)
        if self.as_json:
            dumped = [change.model_dump(mode="json") for change in changes]
            print_line(json.dumps({"model": self.model, "changes": dumped}))
        elif changes:
            print_table(changes_table(changes))
        else:
            stderr.print(f"no alias of {self.model} was ever set: the newest version is served")
        return DONE


class Prune(_RepositoryCommand):
    """Remove old versions. Those that an alias names, or that a rollback would go to, stay."""

    example: ClassVar[str] = "lenserve models prune lenet5-digits --keep 5 --repository repository"

    model: CliPositionalArg[str] = Field(description="name of the model")
    keep: int = Field(ge=1, description="how many of the newest versions stay")
    dry_run: bool = Field(default=False, description="only say what would be removed")

    def act(self) -> int:
        """Remove, and list what was removed."""
        removed = prune(self.models, self.model, self.keep, dry_run=self.dry_run)
        what = "would remove" if self.dry_run else "removed"
        named = f"versions {', '.join(map(str, removed))}" if removed else "nothing"
        result = {"model": self.model, "removed": removed, "dry_run": self.dry_run}
        return self.finish(result, f"{self.model}: {what} {named}")


class Remove(_RepositoryCommand):
    """Remove one version that no alias names; or, with --yes, a whole model. Servers stop serving that."""

    example: ClassVar[str] = "lenserve models remove lenet5-digits@1 --repository repository"

    model: CliPositionalArg[str] = Field(description="MODEL@VERSION; with --yes MODEL")
    yes: bool = Field(
        default=False, description="remove every version of MODEL, its aliases and their history"
    )

    def act(self) -> int:
        """Remove."""
        if "@" not in self.model:
            return self._remove_model()
        if self.yes:
            raise UsageError(f"--yes removes a whole model, and {self.model} is one version: leave it out")
        name, version = _version(self.models, self.model)
        remove(self.models, name, version)
        result = {"model": name, "removed": [version], "dry_run": False}
        return self.finish(result, f"{name}: removed version {version}")

    def _remove_model(self) -> int:
        require_model(self.models, self.model)
        if not self.yes:
            versions = ", ".join(map(str, self.models.versions(self.model)))
            raise UsageError(
                f"{self.model} names no version: to remove one of {versions}, use {self.model}@VERSION; to "
                "remove all of them, the aliases and their history, add --yes"
            )
        removed = remove_model(self.models, self.model)
        result = {"model": self.model, "removed": removed, "dry_run": False}
        return self.finish(result, f"{self.model}: removed, with its versions {', '.join(map(str, removed))}")


def _version(repository: Repository, name: str) -> tuple[str, int]:
    model, _, revision = name.partition("@")
    if not revision:
        raise UsageError(f"{name} names no version: use MODEL@VERSION, for example {name}@1")
    require_model(repository, model)
    return model, _number(repository, model, revision)


def _warn_of_other_labels(
    repository: Repository, model: str, version: int, labels: Sequence[str], before: int
) -> None:
    """Say that clients now get other labels; nothing if the version before can no longer be read."""
    try:
        earlier = repository.read_manifest(model, before).manifest.labels
    except (BundleError, UnknownModel):
        return
    if set(labels) != set(earlier):
        stderr.print(
            f"! version {version} has other labels ({_few(labels)}) than version {before} ({_few(earlier)}): "
            f"if that is a mistake, go back with `lenserve models rollback {model}`",
            markup=False,
        )


def _few(labels: Sequence[str]) -> str:
    more = len(labels) - _LABELS_IN_MESSAGE
    return ", ".join(labels[:_LABELS_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def _number(repository: Repository, model: str, revision: str) -> int:
    if (number := version_number(model, revision)) is not None:
        repository.require_version(model, number)
        return number
    aliases = repository.aliases(model)
    if revision not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise UnknownModel(f"model {model!r} has no alias {revision!r}; known aliases: {known}")
    return aliases[revision]


def _row(
    repository: Repository,
    model: str,
    version: int,
    aliases: Mapping[str, int],
    samples: "Mapping[Sample, float] | None",
) -> dict[str, Any]:
    named = sorted(alias for alias, target in aliases.items() if target == version)
    row: dict[str, Any] = {"version": version, "aliases": named}
    try:
        bundle = repository.look_up(model, version)
        answers = {} if samples is None else {"live": live_answers(samples, model, version, bundle.manifest)}
        return row | facts(bundle) | answers
    except (BundleError, UnknownModel) as error:
        return row | {"error": str(error)}
