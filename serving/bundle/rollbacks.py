"""Decides where a rollback of an alias goes, and says why it goes nowhere. Reads no files."""

from collections.abc import Mapping, Sequence

from serving.bundle.aliases import AliasChange, earlier_targets
from serving.bundle.repository import STABLE_ALIAS

_MAX_LISTED = 10  # versions in a message


def rollback_targets(
    versions: Sequence[int], changes: Sequence[AliasChange], answering: Mapping[str, int | None]
) -> Mapping[str, int | None]:
    """Return alias -> the version that its rollback would go to; None: no version is left.

    Args:
        versions: of the model, in ascending order.
        changes: of its aliases.
        answering: alias -> the version that it names; without `stable`, that key has the served version.
    """
    earlier = {alias: earlier_versions(versions, changes, alias, now) for alias, now in answering.items()}
    return {alias: found[0] if found else None for alias, found in earlier.items()}


def earlier_versions(
    versions: Sequence[int], changes: Sequence[AliasChange], alias: str, now: int | None
) -> list[int]:
    """Return the versions that a rollback may go to, its target first.

    Args:
        versions: of the model, in ascending order.
        changes: of its aliases.
        alias: its name.
        now: the version that it names, or that is served while there is no alias `stable`.
    """
    older: list[int] = []
    if alias == STABLE_ALIAS:
        # Before there was an alias, the newest version was served. Old lines of the log do not say which.
        set_before = [change for change in changes if change.alias == alias and change.version]
        first = (set_before[0].served or set_before[0].version if set_before else now) or 0
        # Versions that are removed since, too: a rollback to one of them was one further back.
        known = {*versions, *(change.version for change in set_before if change.action == "rollback")}
        older = sorted(version for version in known if version and version < first)
    targets = dict.fromkeys(earlier_targets(changes, alias, older))
    return [version for version in targets if version in versions and version != now]


def why_no_rollback(
    model: str,
    alias: str,
    *,
    named: int | None,
    answering: int | None,
    versions: Sequence[int],
    changes: Sequence[AliasChange],
) -> str:
    """Return why an alias cannot be rolled back, and what to do.

    Args:
        model: its name.
        alias: its name.
        named: the version that it names; None: there is no such alias.
        answering: the same, or the version that is served while there is no alias `stable`.
        versions: of the model, in ascending order.
        changes: of its aliases.
    """
    state = "it does not exist" if named is None else f"it names version {named}"
    gone = {version for version in earlier_targets(changes, alias) if version not in versions}
    if gone:
        state += f"; before, it named {_listed(sorted(gone)[-_MAX_LISTED:])} removed"
    elif named is not None:
        state += " and named no other before that"
    left = {change.before for change in changes if change.alias == alias and change.action == "rollback"}
    others = [version for version in versions if version != answering]
    choices = [version for version in others if version not in left][-_MAX_LISTED:]
    if not others:
        advice = f"version {versions[-1]} is the only one"
    elif not choices:
        advice = f"the others were rolled back from: {', '.join(map(str, others[-_MAX_LISTED:]))}"
    else:
        which = f"{model}@VERSION" if len(choices) > 1 else f"{model}@{choices[0]}"
        command = f"promote {which}" if alias == STABLE_ALIAS else f"alias {which} {alias}"
        choose = f"choose one of {', '.join(map(str, choices))} with" if len(choices) > 1 else "use"
        advice = f"{choose} `lenserve models {command}`"
    return f"alias {alias!r} of model {model!r} cannot be rolled back: {state}; {advice}"


def rollback_command(model: str, alias: str) -> str:
    """Return the command that rolls an alias back, and the name of that alias, for people."""
    option = f" --alias {alias}" if alias != STABLE_ALIAS else ""
    return f"`lenserve models rollback {model}{option}` (alias {alias!r})"


def _listed(versions: Sequence[int]) -> str:
    *others, last = versions
    if not others:
        return f"version {last}, which was"
    return f"versions {', '.join(map(str, others))} and {last}, which were"
