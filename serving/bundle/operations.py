"""What operators do with the versions of a model: roll an alias back, look at its history, remove versions.

Every change is made under the lock on the model's folder.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from serving.bundle.aliases import (
    AliasChange,
    earlier_targets,
    new_change,
    read_aliases,
    read_history,
    require_expected,
    write_change,
)
from serving.bundle.repository import STABLE_ALIAS, Bundle, Repository
from serving.errors import AliasMoved, BundleError, LenserveError, UnknownModel

RECENT_S = 60.0
_MAX_LISTED = 10  # newest versions in a message


def history(repository: Repository, model: str) -> Sequence[AliasChange]:
    """Return every change of the model's aliases, oldest first, also those made by an editor.

    Raises:
        BundleError: aliases.json or its log is invalid.
        OSError: one of them cannot be read.
        UnknownModel: the repository has no such model.
    """
    require_model(repository, model)
    with repository.changing(model, shared=True) as folder:
        return read_history(folder)


def roll_back(
    repository: Repository,
    model: str,
    alias: str = STABLE_ALIAS,
    *,
    expect: int | None = None,
    reason: str = "",
    recent_s: float = RECENT_S,
) -> AliasChange:
    """Point an alias at the version that it named before.

    Before there is an alias `stable` the newest version is served; there `stable` goes to the one before it.

    Args:
        repository: where the model is.
        model: its name.
        alias: its name.
        expect: version that the alias must name now; 0: there must be no such alias; None: any.
        reason: why, for the log.
        recent_s: without `expect`, a rollback so soon after another is an error: two operators may have
            answered one alarm, and would go back two versions.

    Raises:
        AliasMoved: the alias does not name the expected version, or was rolled back a moment ago.
        BundleError: there is no earlier version, or its files are damaged.
        UnknownModel: the repository has no such model.
    """
    require_model(repository, model)
    with repository.changing(model) as folder:
        now = read_aliases(folder).get(alias)
        require_expected(now, model, alias, expect)
        changes = read_history(folder)
        if expect is None:
            _require_no_recent_rollback(changes, alias, recent_s)
        earlier = _earlier_versions(repository.versions(model), changes, alias)
        if not earlier:
            choices = ", ".join(map(str, repository.versions(model)[-_MAX_LISTED:]))
            command = (
                f"promote {model}@VERSION" if alias == STABLE_ALIAS else f"alias {model}@VERSION {alias}"
            )
            raise BundleError(
                f"alias {alias!r} of model {model!r} has named no other version that still exists: choose "
                f"one of {choices} with `lenserve models {command}`"
            )
        repository.read(model, earlier[0])
        change = new_change("rollback", alias, now, earlier[0], reason)
        write_change(folder, change)
    return change


def remove_alias(
    repository: Repository, model: str, alias: str, *, expect: int | None = None, reason: str = ""
) -> AliasChange:
    """Remove an alias. Arguments as for `roll_back`.

    Raises:
        AliasMoved: the alias does not name the expected version.
        UnknownModel: there is no such model or alias.
    """
    require_model(repository, model)
    with repository.changing(model) as folder:
        aliases = read_aliases(folder)
        now = aliases.get(alias)
        require_expected(now, model, alias, expect)
        if now is None:
            known = ", ".join(sorted(aliases)) or "none"
            raise UnknownModel(f"model {model!r} has no alias {alias!r}; known aliases: {known}")
        change = new_change("remove", alias, now, None, reason)
        write_change(folder, change)
    return change


def remove(repository: Repository, model: str, version: int) -> None:
    """Remove a version. Its number is not used again.

    Raises:
        AliasMoved: in an object store, an alias was pointed at it meanwhile; it stays.
        BundleError: an alias names it, or it is served because it is the newest.
        UnknownModel: the repository has no such version.
    """
    require_model(repository, model)
    with repository.changing(model) as folder:
        repository.require_version(model, version)
        aliases = read_aliases(folder)
        naming = sorted(alias for alias, target in aliases.items() if target == version)
        if naming:
            raise BundleError(
                f"version {version} of model {model!r} is not removed: the alias {naming[0]!r} names it; "
                "point the alias at another version first"
            )
        if repository.versions(model) == [version]:
            raise BundleError(
                f"version {version} of model {model!r} is not removed: it is the only one; to serve the "
                f"model no more, remove it whole with `lenserve models remove {model} --yes`"
            )
        served = newest_usable(repository, model) if STABLE_ALIAS not in aliases else None
        if served is not None and served.version == version:
            raise BundleError(
                f"version {version} of model {model!r} is not removed: it is the newest that can be served, "
                f"which is served while there is no alias {STABLE_ALIAS!r}; promote another version first"
            )
        repository.remove_versions(model, [version])


def remove_model(repository: Repository, model: str) -> list[int]:
    """Remove a model with all its versions and aliases; servers stop serving it.

    Returns: the numbers of its versions.

    Raises:
        BundleError: it cannot be removed.
        UnknownModel: the repository has no such model.
    """
    require_model(repository, model)
    with repository.changing(model):
        versions = repository.versions(model)
        repository.remove_model(model)
    return versions


def prune(repository: Repository, model: str, keep: int, *, dry_run: bool = False) -> list[int]:
    """Remove old versions, but none that is served, that an alias names, or that a rollback would go to.

    Args:
        repository: where the model is.
        model: its name.
        keep: how many of the newest versions stay, at least 1.
        dry_run: remove nothing.

    Returns: the numbers that are removed.

    Raises:
        AliasMoved: in an object store, an alias was pointed at one of them meanwhile; it stays.
        BundleError: aliases.json or its log is invalid; nothing is removed.
        UnknownModel: the repository has no such model.
    """
    require_model(repository, model)
    with repository.changing(model) as folder:
        versions, aliases = repository.versions(model), read_aliases(folder)
        changes = read_history(folder)
        needed = {*versions[-keep:], *aliases.values()}
        if STABLE_ALIAS not in aliases and (served := newest_usable(repository, model)) is not None:
            needed.add(served.version)
        for alias in {*aliases, STABLE_ALIAS}:
            needed.update(_earlier_versions(versions, changes, alias)[:1])
        removed = [version for version in versions if version not in needed]
        if not dry_run:
            repository.remove_versions(model, removed)
    return removed


def _earlier_versions(versions: Sequence[int], changes: Sequence[AliasChange], alias: str) -> list[int]:
    """Return the versions that a rollback may go to, its target first."""
    named = [version for version in earlier_targets(changes, alias) if version in versions]
    if alias != STABLE_ALIAS:
        return named
    # Before there was an alias, the newest version was served, whichever that was.
    set_first = [change.version for change in changes if change.alias == alias and change.version]
    first = set_first[0] if set_first else versions[-1]
    return named + [version for version in reversed(versions) if version < first and version not in named]


def newest_usable(repository: Repository, model: str) -> Bundle | None:
    """Return the newest version that is not damaged, which is served while there is no alias `stable`.

    Returns: None if there is no such version.
    """
    for version in reversed(repository.versions(model)):
        with suppress(LenserveError):  # servers do not load it either
            return repository.read(model, version)
    return None


def require_model(repository: Repository, model: str) -> None:
    """Check that a model exists.

    Raises:
        UnknownModel: the repository has no such model.
    """
    name, _, revision = model.partition("@")
    if revision:
        raise UnknownModel(f"{model!r} names a version: this command takes the model alone, {name}")
    if not repository.versions(model):
        known = ", ".join(repository.models()) or "none"
        raise UnknownModel(f"the repository has no model {model!r}; it has {known}")


def _require_no_recent_rollback(changes: Sequence[AliasChange], alias: str, recent_s: float) -> None:
    last = next((change for change in reversed(changes) if change.alias == alias), None)
    if last is None or last.action != "rollback":
        return
    ago_s = (datetime.now(UTC) - last.at.astimezone(UTC)).total_seconds()
    if abs(ago_s) < recent_s:  # below zero: its clock is ahead of ours, or ours was set back
        raise AliasMoved(
            f"alias {alias!r} was rolled back from version {last.before or 'none'} to {last.version} by "
            f"{last.by} {max(ago_s, 0):.0f} s ago: to go back further, repeat with --expect {last.version}"
        )
