"""The aliases of one model, and the log of their changes. Independent of versions. The caller holds the lock.

A change appends its line to the log, but not yet the end of that line, replaces aliases.json, and ends the
line. A line without an end counts only if aliases.json says the same, so a process that is killed leaves the
old state or the new one in both files. What was changed by hand is added to the log as `found`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, RootModel, SerializerFunctionWrapHandler, ValidationError, model_serializer

from serving.bundle.manifest import Strict
from serving.bundle.staging import append_bytes, replace_text, sync
from serving.bundle.who import who
from serving.errors import AliasMoved, BundleError
from serving.limited_files import read_limited
from serving.text_files import without_mark
from serving.validation_errors import describe

ALIASES_FILE = "aliases.json"
HISTORY_FILE = "aliases.history.jsonl"
MAX_ALIASES_BYTES = 2**20
MAX_HISTORY_BYTES = 64 * 2**20  # 300,000 changes

Action = Literal["set", "rollback", "remove", "found"]


class AliasTarget(Strict):
    """One entry of aliases.json."""

    version: int = Field(ge=1)


class _Aliases(RootModel[dict[str, AliasTarget]]):
    """aliases.json."""


class AliasChange(Strict):
    """One line of the log."""

    at: datetime = Field(description="when; found: when it was noticed")
    by: str = Field(description="USER@HOST; found: of the one who noticed it")
    action: Action = Field(description="found: aliases.json was changed by other means, such as an editor")
    alias: str
    before: int | None = Field(ge=1, description="version that it named; null: there was no such alias")
    version: int | None = Field(ge=1, description="version that it names since; null: it was removed")
    reason: str = Field(default="", description="why, in the words of the one who changed it")
    served: int | None = Field(
        default=None,
        ge=1,
        description="version that was served before `stable` existed: the newest that was intact; null: it "
        "existed, or older versions of Lenserve wrote the line",
    )

    @model_serializer(mode="wrap")
    def _without_null_additions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a key that is null: versions of Lenserve that are older than the key reject it."""
        values: dict[str, Any] = serialize(self)
        if self.served is None:
            del values["served"]
        return values


def new_change(  # noqa: PLR0917 - the keys of a line, in their order
    action: Action,
    alias: str,
    before: int | None,
    version: int | None,
    reason: str = "",
    served: int | None = None,
) -> AliasChange:
    """Return a change that is made now, by this user."""
    return AliasChange(
        at=datetime.now(UTC),
        by=who(),
        action=action,
        alias=alias,
        before=before,
        version=version,
        reason=reason,
        served=served,
    )


def read_aliases(folder: Path) -> Mapping[str, int]:
    """Read aliases.json: alias -> version; empty if the file is missing.

    Args:
        folder: of the model.

    Raises:
        BundleError: aliases.json is invalid.
        OSError: it cannot be read.
    """
    path = folder / ALIASES_FILE
    try:
        return parse_aliases(read_limited(path, MAX_ALIASES_BYTES), path)
    except FileNotFoundError:
        return {}


def parse_aliases(content: bytes, place: object) -> Mapping[str, int]:
    """Return alias -> version of an aliases.json.

    Args:
        content: of the file or object.
        place: its path or URL, for the message.

    Raises:
        BundleError: it is invalid.
    """
    try:
        aliases = _Aliases.model_validate_json(without_mark(content))
    except ValidationError as error:
        raise BundleError(
            f'{place}: {describe(error)}; repair it, for example as {{"stable": {{"version": 1}}}}: '
            f"{HISTORY_FILE} beside it says what each alias named. Do not delete it: then the newest version "
            "is served"
        ) from error
    return {alias: target.version for alias, target in aliases.root.items()}


def read_history(folder: Path) -> tuple[AliasChange, ...]:
    """Read all changes, oldest first; also those that were made by hand since the last one.

    The caller holds the lock on the folder.

    Raises:
        BundleError: aliases.json or the log is invalid.
        OSError: one of them cannot be read.
    """
    aliases = read_aliases(folder)
    changes = _read_log(folder, aliases).changes
    return (*changes, *_found(changes, aliases))


def read_logged(folder: Path) -> tuple[AliasChange, ...]:
    """Read the changes in the log alone, oldest first: they say how to repair a damaged aliases.json.

    The caller holds the lock on the folder.

    Raises:
        BundleError: the log is invalid.
        OSError: it cannot be read.
    """
    return _read_log(folder, {}).changes


def write_change(folder: Path, change: AliasChange) -> None:
    """Change one alias, in aliases.json and in the log. The caller holds the lock on the folder.

    Raises:
        BundleError: aliases.json or the log is invalid; nothing is changed.
        OSError: one of them cannot be read or written.
    """
    aliases = read_aliases(folder)
    log = _read_log(folder, aliases)
    targets = {name: version for name, version in aliases.items() if name != change.alias}
    if change.version is not None:
        targets[change.alias] = change.version
    written = _Aliases({name: AliasTarget(version=number) for name, number in sorted(targets.items())})
    found = b"".join(_line(each) + b"\n" for each in _found(log.changes, aliases))
    path = folder / HISTORY_FILE
    append_bytes(path, log.end + found + _line(change), keep_bytes=log.kept_bytes)
    replace_text(folder / ALIASES_FILE, written.model_dump_json(indent=2) + "\n")
    sync(folder)
    append_bytes(path, b"\n")


def require_expected(now: int | None, model: str, alias: str, expect: int | None) -> None:
    """Compare what an alias names with what its operator believes.

    Args:
        now: version that it names; None: there is no such alias.
        model: for the message.
        alias: its name.
        expect: version that it must name; 0: there must be no such alias; None: any.

    Raises:
        AliasMoved: it is another one.
    """
    if expect is not None and (now or 0) != expect:
        named = "does not exist" if now is None else f"names version {now}"
        wanted = f"version {expect}" if expect else "no such alias"
        raise AliasMoved(
            f"alias {alias!r} of model {model!r} {named}, expected {wanted}: another operator changed it. "
            f"`lenserve models history {model}` shows who and why; if your change is still right, repeat it "
            f"with --expect {now or 0}"
        )


def earlier_targets(changes: Sequence[AliasChange], alias: str, first: Sequence[int] = ()) -> list[int]:
    """Return the versions that an alias named before the one that it names now, the latest first.

    A version that was served while there was no alias counts as named. What was rolled back from is not among
    them: a second rollback goes one further back.

    Args:
        changes: of all aliases, oldest first.
        alias: its name.
        first: versions that count as named before the first change, oldest first.
    """
    named = list(first)
    for change in changes:
        if change.alias != alias or change.version is None:
            continue
        if change.served and change.action != "rollback" and named[-1:] != [change.served]:
            named.append(change.served)
        if change.action == "rollback":
            kept = len(named) - named[::-1].index(change.version) if change.version in named else 0
            del named[kept:]
        if named[-1:] != [change.version]:
            named.append(change.version)
    now = next((change.version for change in reversed(changes) if change.alias == alias), None)
    return [version for version in reversed(named) if version != now]


@dataclass(frozen=True, slots=True)
class _Log:
    """The log, without a last line that does not count."""

    changes: tuple[AliasChange, ...]
    kept_bytes: int
    end: bytes  # that its last line lacks


def _read_log(folder: Path, aliases: Mapping[str, int]) -> _Log:
    path = folder / HISTORY_FILE
    try:
        content = read_limited(path, MAX_HISTORY_BYTES)
    except FileNotFoundError:
        return _Log((), 0, b"")
    *lines, last = content.split(b"\n")
    changes = tuple(_parse(path, number, line) for number, line in enumerate(lines, start=1))
    try:
        pending = AliasChange.model_validate_json(last)
    except ValidationError:  # empty, or its writer was killed half-way
        return _Log(changes, len(content) - len(last), b"")
    if aliases.get(pending.alias) != pending.version:
        return _Log(changes, len(content) - len(last), b"")
    return _Log((*changes, pending), len(content), b"\n")


def _parse(path: Path, number: int, line: bytes) -> AliasChange:
    try:
        return AliasChange.model_validate_json(line)
    except ValidationError as error:
        raise BundleError(
            f"{path}: line {number}: {describe(error)}; delete that line, or move the file away to begin a "
            "new one, after which a rollback finds no version that an alias named before"
        ) from error


def _found(changes: Sequence[AliasChange], aliases: Mapping[str, int]) -> list[AliasChange]:
    """Return what was changed by other means since the last change."""
    logged = {change.alias: change.version for change in changes}
    return [
        new_change("found", alias, logged.get(alias), aliases.get(alias))
        for alias in sorted({*logged, *aliases})
        if logged.get(alias) != aliases.get(alias)
    ]


def _line(change: AliasChange) -> bytes:
    return change.model_dump_json().encode()
