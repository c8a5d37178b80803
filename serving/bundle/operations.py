"""What operators do with the versions of a model: roll an alias back, look at its history, remove versions.

Every change is made under the lock on the model's folder.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from serving.bundle.aliases import (
    AliasChange,
    read_aliases,
    read_history,
    read_logged,
    require_expected,
)
from serving.bundle.damage import is_damage
from serving.bundle.looks_like import version_number
from serving.bundle.repository import STABLE_ALIAS, Bundle, Repository
from serving.bundle.rollbacks import earlier_versions, rollback_command, rollback_targets, why_no_rollback
from serving.errors import AliasMoved, BundleError, UnknownModel, UsageError

RECENT_S = 60.0
# Reason of a change, by which runs know it.
KEPT = "the version that was served before a newer one was published"
_OTHER_FORM = re.compile(r"([^@/:]+)[/:](\d+)")  # of MODEL@VERSION


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


def logged(repository: Repository, model: str) -> Sequence[AliasChange]:
    """Return the changes in the log, oldest first, also while aliases.json is invalid.

    Raises:
        BundleError: the log is invalid.
        OSError: it cannot be read.
        UnknownModel: the repository has no such model.
    """
    require_model(repository, model)
    with repository.changing(model, shared=True) as folder:
        return read_logged(folder)


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
        aliases, changes = read_aliases(folder), read_history(folder)
        named = aliases.get(alias)
        require_expected(named, model, alias, expect)
        if expect is None:
            _require_no_recent_rollback(changes, alias, recent_s)
        now = named
        if alias == STABLE_ALIAS:
            now = _answering(repository, model, aliases)[STABLE_ALIAS]
        versions = repository.versions(model)
        earlier = earlier_versions(versions, changes, alias, now)
        if not earlier:
            raise BundleError(
                why_no_rollback(model, alias, named=named, answering=now, versions=versions, changes=changes)
            )
        try:
            repository.read(model, earlier[0])
        except BundleError as error:
            if not is_damage(error):
                raise
            raise BundleError(f"{error}{_way_on(model, alias, earlier[1:])}") from error
        return repository.write_alias(folder, model, "rollback", alias, earlier[0], reason)


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
        return repository.write_alias(folder, model, "remove", alias, None, reason)


def remove(
    repository: Repository, model: str, version: int, *, confirmed: bool = False
) -> Mapping[str, int | None]:
    """Remove a version. Its number is not used again.

    Args:
        repository: where the model is.
        model: its name.
        version: its number.
        confirmed: remove it although a rollback would go to it.

    Returns: the aliases whose rollback would have gone to it -> where that goes now; None: nowhere.

    Raises:
        AliasMoved: in an object store, an alias was pointed at it meanwhile; it stays.
        BundleError: an alias names it, it is served because it is the newest, or a rollback would go to it;
            or aliases.json or its log is invalid.
        UnknownModel: the repository has no such version.
    """
    require_model(repository, model)
    with repository.changing(model) as folder:
        repository.require_version(model, version)
        versions, aliases, changes = repository.versions(model), read_aliases(folder), read_history(folder)
        answering = _answering(repository, model, aliases)
        why = _why_needed(model, version, versions, aliases, answering)
        targets = rollback_targets(versions, changes, answering)
        going = sorted(alias for alias, target in targets.items() if target == version)
        if going and not confirmed:
            commands = " and ".join(rollback_command(model, alias) for alias in going)
            why = why or f"{commands} would go to it; to remove it all the same, add --yes"
        if why:
            raise BundleError(f"version {version} of model {model!r} is not removed: {why}")
        repository.remove_versions(model, [version])
    left = rollback_targets([each for each in versions if each != version], changes, answering)
    return {alias: left[alias] for alias in going}


def _why_needed(
    model: str,
    version: int,
    versions: Sequence[int],
    aliases: Mapping[str, int],
    answering: Mapping[str, int | None],
) -> str:
    """Return why a version cannot be removed and what to do about it, or ""."""
    naming = sorted(alias for alias, target in aliases.items() if target == version)
    if len(naming) == 1:
        return f"the alias {naming[0]!r} names it; point the alias at another version first"
    if naming:
        named = f"{', '.join(map(repr, naming[:-1]))} and {naming[-1]!r}"
        return f"the aliases {named} name it; point them at other versions first"
    if versions == [version]:
        return (
            "it is the only one; to serve the model no more, remove it whole with "
            f"`lenserve models remove {model} --yes`"
        )
    if answering[STABLE_ALIAS] == version:
        return (
            "it is the newest that is intact, and servers that can load it serve it while there is no alias "
            f"{STABLE_ALIAS!r}; promote another version first"
        )
    return ""


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
        BundleError: aliases.json or its log is invalid, or an alias names a version that does not exist;
            nothing is removed.
        UnknownModel: the repository has no such model.
    """
    require_model(repository, model)
    with repository.changing(model) as folder:
        versions, aliases = repository.versions(model), read_aliases(folder)
        changes = read_history(folder)
        answering = _answering(repository, model, aliases)
        missing = {alias: target for alias, target in aliases.items() if target not in versions}
        if missing:
            alias, target = next(iter(missing.items()))
            raise BundleError(
                f"nothing of model {model!r} is removed: its alias {alias!r} names version {target}, which "
                "does not exist, so servers may still answer with another one: set the alias first"
            )
        needed = {*versions[-keep:], *answering.values()}
        needed.update(rollback_targets(versions, changes, answering).values())
        removed = [version for version in versions if version not in needed]
        if not dry_run:
            repository.remove_versions(model, removed)
    return removed


def _answering(repository: Repository, model: str, aliases: Mapping[str, int]) -> Mapping[str, int | None]:
    """Return alias -> version, also for `stable` if there is no such alias: the version that is served."""
    if STABLE_ALIAS in aliases:
        return aliases
    newest = newest_usable(repository, model)
    return {**aliases, STABLE_ALIAS: newest.version if newest else None}


def newest_usable(repository: Repository, model: str, *, to_show: bool = False) -> Bundle | None:
    """Return the newest version that is intact: without the alias `stable`, servers try to load it first.

    Args:
        repository: where the model is.
        model: its name.
        to_show: transfer no files: see `Repository.look_up`.

    Returns: None if there is no such version.

    Raises:
        BundleError, OSError, StoreError: whether a version is damaged cannot be found out now. An older one
            may not be the served one.
    """
    read = repository.look_up if to_show else repository.read
    for version in reversed(repository.versions(model)):
        try:
            return read(model, version)
        except (BundleError, UnknownModel) as error:  # no server that starts now can load it either
            if not is_damage(error):
                raise
    return None


def keep_served(
    repository: Repository, model: str, *, prove: Callable[[Bundle], None] = lambda _: None
) -> None:
    """Let `stable` name what is served, where there is no such alias: a newer version is then not served.

    Args:
        repository: where the model is.
        model: its name.
        prove: called with the version that would be kept, unless it is damaged, before anything is changed.

    Raises:
        Exception: whatever `prove` raises.
        BundleError: the aliases are invalid.
        OSError, StoreError: what is served cannot be found out now.
    """
    if not repository.versions(model):
        return
    with repository.changing(model) as folder:
        versions = repository.versions(model)
        if versions and STABLE_ALIAS not in read_aliases(folder):
            usable = newest_usable(repository, model)
            if usable is not None:
                prove(usable)
            kept, reason = _kept(usable, versions)
            repository.write_alias(folder, model, "set", STABLE_ALIAS, kept, reason)


def served_without_stable(repository: Repository, model: str, versions: Sequence[int]) -> tuple[int, str]:
    """Return the version that is served while there is no alias `stable`, and the reason to keep it.

    If the newest is damaged, a server that starts serves the newest intact one. If all are damaged, servers
    that have loaded the newest go on with it.
    """
    return _kept(newest_usable(repository, model), versions)


def _kept(usable: Bundle | None, versions: Sequence[int]) -> tuple[int, str]:
    if usable is None or usable.version == versions[-1]:
        return versions[-1], KEPT
    return usable.version, f"{KEPT}; version {versions[-1]} is damaged"


def split_name(named: str) -> tuple[str, str]:
    """Return MODEL and REVISION of MODEL@REVISION; the revision of MODEL alone is "".

    Raises:
        UsageError: nothing follows the @, as of a variable that is not set; or it is MODEL/2 or MODEL:2.
    """
    model, at, revision = named.partition("@")
    if at and not revision:
        raise UsageError(f"{named} names no version after the @: add it, such as {model}@1, or use {model}")
    if otherwise := _OTHER_FORM.fullmatch(named):
        raise UsageError(f"{named} is not the name of a version: use {otherwise[1]}@{otherwise[2]}")
    return model, revision


def version_named(repository: Repository, model: str, revision: str) -> int:
    """Return the version that a number or an alias names.

    Raises:
        BundleError: aliases.json is invalid.
        UnknownModel: the model has no such version or alias.
    """
    if (number := version_number(model, revision)) is not None:
        repository.require_version(model, number)
        return number
    aliases = repository.aliases(model)
    if revision not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise UnknownModel(f"model {model!r} has no alias {revision!r}; known aliases: {known}")
    return aliases[revision]


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


def _way_on(model: str, alias: str, others: Sequence[int]) -> str:
    """Say how to go further back than to a damaged version; nothing if that is impossible."""
    if not others:
        return ""
    command = (
        f"promote {model}@{others[0]}" if alias == STABLE_ALIAS else f"alias {model}@{others[0]} {alias}"
    )
    return f". To go further back, use `lenserve models {command}`"


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
