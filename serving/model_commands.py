"""`lenserve models promote|rollback|alias|history|prune|remove`: what operators do with versions.

They work on the files of a repository, without a server: running servers notice the change.
"""

import json
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from serving.bundle import STABLE_ALIAS, AliasChange, Bundle, Repository
from serving.bundle.operations import (
    history,
    logged,
    newest_usable,
    prune,
    remove,
    remove_alias,
    remove_model,
    require_model,
    roll_back,
)
from serving.commandline import DONE, FAILED, print_line, print_table, stderr
from serving.errors import BundleError, UnknownModel, UsageError
from serving.repository_command import RepositoryCommand, VersionCommand, split_version, version_of
from serving.version_tables import changes_table

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


class _ChangeCommand(VersionCommand):
    """A command that changes an alias."""

    expect: _Expect = None
    reason: _Reason = ""

    def finish_change(self, model: str, alias: str, change: AliasChange | None, version: int) -> int:
        """Print what became of an alias."""
        if change is None:
            result = {"model": model, "alias": alias, "version": version, "changed": False}
            lost = "; nothing changes, so the reason is not recorded" if self.reason else ""
            return self.finish(result, f"{model}: {alias} already names version {version}{lost}")
        result = {"model": model, "changed": True, **change.model_dump(mode="json")}
        before = "did not exist" if change.before is None else f"named version {change.before}"
        if change.served is not None:
            before += f", and version {change.served} was {_newest(self.models, model, change.served)}"
        return self.finish(result, f"{model}: {alias} names version {change.version}; before, it {before}")


class Promote(_ChangeCommand):
    """Serve this version: point the alias `stable` at it, after its digests are verified."""

    example: ClassVar[str] = "lenserve models promote lenet5-digits@2 --repository repository"

    model: CliPositionalArg[str] = Field(description="MODEL@VERSION or MODEL@ALIAS")

    def act(self) -> int:
        """Change the alias."""
        name, version = version_of(self.models, self.model)
        labels = self.models.read(name, version).manifest.labels
        change = self.models.set_alias(name, STABLE_ALIAS, version, expect=self.expect, reason=self.reason)
        if change is not None and (before := change.before or change.served) is not None:
            self.warn(_other_labels(self.models, name, version, labels, before))
        return self.finish_change(name, STABLE_ALIAS, change, version)


class Rollback(_ChangeCommand):
    """Go back to the version that the alias `stable` named before."""

    example: ClassVar[str] = "lenserve models rollback lenet5-digits --repository repository"

    model: CliPositionalArg[str] = Field(description="name of the model")
    alias: str = Field(default=STABLE_ALIAS, description="the alias to roll back")

    @classmethod
    def explain_arguments(cls, argv: Sequence[str]) -> str:
        """Name the command that goes to a version of choice."""
        meant = split_version(argv)
        return f"to serve that version, use `lenserve models promote {meant}`" if meant else ""

    def act(self) -> int:
        """Change the alias."""
        change = roll_back(self.models, self.model, self.alias, expect=self.expect, reason=self.reason)
        return self.finish_change(self.model, self.alias, change, change.version or 0)


class Alias(_ChangeCommand):
    """Point an alias at a version, which is then served as MODEL@ALIAS; or remove the alias."""

    example: ClassVar[str] = "lenserve models alias lenet5-digits@2 canary --repository repository"

    model: CliPositionalArg[str] = Field(description="MODEL@VERSION; with --remove MODEL")
    alias: CliPositionalArg[str] = Field(description="name of the alias")
    remove: bool = Field(default=False, description="remove the alias")

    def act(self) -> int:
        """Change the alias."""
        if self.remove:
            return self._remove()
        if "@" in self.alias and "@" not in self.model:
            raise UsageError(f"{self.alias} is not the name of an alias: use {self.alias} {self.model}")
        if meant := split_version([self.model, self.alias]):
            raise UsageError(f"{self.model} names no version: use {meant} and the name of the alias")
        name, version = version_of(self.models, self.model)
        self.models.read(name, version)
        set_to = self.models.set_alias(name, self.alias, version, expect=self.expect, reason=self.reason)
        return self.finish_change(name, self.alias, set_to, version)

    def _remove(self) -> int:
        require_model(self.models, self.model)
        # Before the change: if that cannot be found out now, nothing is changed.
        served = newest_usable(self.models, self.model) if self.alias == STABLE_ALIAS else None
        change = remove_alias(self.models, self.model, self.alias, expect=self.expect, reason=self.reason)
        result = {"model": self.model, "changed": True, **change.model_dump(mode="json")}
        text = f"{self.model}: {self.alias} is removed; it named version {change.before}"
        if self.alias == STABLE_ALIAS:
            if served is None:
                text += "; every version is damaged: a server that starts now has none to serve"
            else:
                newest = _newest(self.models, self.model, served.version)
                text += f", {newest}" if served.version == change.before else _served_now(served, newest)
                self.warn(_never_promoted(served, history(self.models, self.model), change.before))
        return self.finish(result, text)


class History(RepositoryCommand):
    """List every change of a model's aliases: when, by whom, from which version to which, and why."""

    example: ClassVar[str] = "lenserve models history lenet5-digits --repository repository"

    model: CliPositionalArg[str] = Field(description="name of the model")

    def act(self) -> int:
        """List, oldest first."""
        code = DONE
        try:
            changes = history(self.models, self.model)
        except BundleError as error:  # of aliases.json: the log says what it held
            changes, code = logged(self.models, self.model), FAILED
            self.warn(str(error))
        if self.as_json:
            dumped = [change.model_dump(mode="json") for change in changes]
            print_line(json.dumps({"model": self.model, "changes": dumped}))
        elif changes:
            print_table(changes_table(changes))
        else:
            stderr.print(f"no alias of {self.model} was ever set: the newest version that loads is served")
        return code


class Prune(RepositoryCommand):
    """Remove old versions. Those that an alias names, or that a rollback would go to, stay."""

    example: ClassVar[str] = "lenserve models prune lenet5-digits --keep 5 --repository repository"

    model: CliPositionalArg[str] = Field(description="name of the model")
    keep: int = Field(ge=1, description="how many of the newest versions stay")
    dry_run: bool = Field(default=False, description="only say what would be removed")

    def act(self) -> int:
        """Remove, and list what was removed."""
        removed = prune(self.models, self.model, self.keep, dry_run=self.dry_run)
        what = "would remove" if self.dry_run else "removed"
        named = _versions(removed) if removed else "nothing"
        result = {"model": self.model, "removed": removed, "dry_run": self.dry_run}
        return self.finish(result, f"{self.model}: {what} {named}")


class Remove(VersionCommand):
    """Remove one version that no alias names; or, with --yes, a whole model, which servers stop serving."""

    example: ClassVar[str] = "lenserve models remove lenet5-digits@1 --repository repository"

    model: CliPositionalArg[str] = Field(description="MODEL@VERSION; with --yes MODEL")
    yes: bool = Field(
        default=False,
        description="of MODEL: remove every version, the aliases and their history; of MODEL@VERSION: remove "
        "it although a rollback would go to it",
    )

    def act(self) -> int:
        """Remove."""
        if "@" not in self.model:
            return self._remove_model()
        name, version = version_of(self.models, self.model)
        moved = remove(self.models, name, version, confirmed=self.yes)
        text = [f"{name}: removed version {version}"]
        for alias, target in moved.items():
            goes = "is no longer possible" if target is None else f"now goes to version {target}"
            text.append(f"a rollback of {alias} {goes}")
        result = {"model": name, "removed": [version], "dry_run": False, "rollback": dict(moved)}
        return self.finish(result, "; ".join(text))

    def _remove_model(self) -> int:
        require_model(self.models, self.model)
        versions = self.models.versions(self.model)
        if not self.yes:
            one = f"to remove one of {', '.join(map(str, versions))}, use {self.model}@VERSION; "
            raise UsageError(
                f"{self.model} names no version: {one if len(versions) > 1 else ''}to remove "
                f"{'all of them' if len(versions) > 1 else _versions(versions)}, the aliases and their "
                "history, add --yes"
            )
        removed = remove_model(self.models, self.model)
        result = {"model": self.model, "removed": removed, "dry_run": False}
        return self.finish(result, f"{self.model}: removed, with its {_versions(removed)}")


def _versions(numbers: Sequence[int]) -> str:
    return f"version{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _newest(repository: Repository, model: str, version: int) -> str:
    """Describe the version that servers try to load first while there is no alias `stable`."""
    return "the newest" if version == repository.versions(model)[-1] else "the newest that is intact"


def _served_now(bundle: Bundle, newest: str) -> str:
    return f"; version {bundle.version} is {newest}; a server that cannot load it serves an older one"


def _never_promoted(bundle: Bundle, changes: Sequence[AliasChange], before: int | None) -> str:
    """Say that a version is served now which was never promoted; nothing if it was served before."""
    model, version, gate = bundle.model, bundle.version, bundle.manifest.gate
    of_stable = [change for change in changes if change.alias == STABLE_ALIAS]
    if version in {before, *(change.version for change in of_stable)}:
        return ""
    is_candidate = gate is not None and gate.verdict == "candidate"
    if not is_candidate and version in {change.served for change in of_stable}:
        return ""
    return (
        f"version {version} was never promoted: see `lenserve models show {model}@{version}`; to serve "
        f"version {before} again, use `lenserve models promote {model}@{before}`"
    )


def _other_labels(
    repository: Repository, model: str, version: int, labels: Sequence[str], before: int
) -> str:
    """Say that clients now get other labels; nothing if the version before can no longer be read."""
    try:
        earlier = repository.read_manifest(model, before).manifest.labels
    except (BundleError, UnknownModel):
        return ""
    if set(labels) == set(earlier):
        return ""
    return (
        f"version {version} has other labels ({_few(labels)}) than version {before} ({_few(earlier)}): "
        f"if that is a mistake, go back with `lenserve models rollback {model}`"
    )


def _few(labels: Sequence[str]) -> str:
    more = len(labels) - _LABELS_IN_MESSAGE
    return ", ".join(labels[:_LABELS_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")
