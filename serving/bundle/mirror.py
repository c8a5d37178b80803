"""Copies versions from an object store into a local repository, which servers then read like any other.

A version is copied into a separate folder, named by the digest of its manifest; a copy that was interrupted
continues there. Every file is compared with its digest before the version is renamed into the repository.
Aliases follow after the versions that they name. What a store loses is removed from the copy only later, and
a store that does not answer, or answers with nothing, changes nothing.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving.bundle.aliases import ALIASES_FILE, MAX_ALIASES_BYTES, parse_aliases
from serving.bundle.looks_like import is_version_name
from serving.bundle.manifest import MANIFEST_FILE, NAME_PATTERN
from serving.bundle.repository import MAX_MANIFEST_BYTES, Repository
from serving.bundle.staging import locked, remove_folder, replace_bytes, sync
from serving.bundle.store import Objects, Store
from serving.bundle.version_copy import copy_version
from serving.errors import BundleError, LenserveError, StoreError, UnknownModel
from serving.limited_files import read_limited

COPY = "repository"  # folder of the copy, which servers read
KEPT_VERSIONS = 3  # the newest of each model, beside those that aliases name
REMOVE_AFTER_S = 600.0  # from when a version is not needed until its copy is removed
_RETRY_AFTER_S = 600.0  # a damaged version is not copied again and again, unless its objects change

Aliases = Mapping[str, tuple[str, bytes]]  # model -> state and content of an aliases.json that is new


@dataclass(frozen=True, slots=True)
class CopiedVersion:
    """One version that was copied."""

    model: str
    version: int
    digest: str
    size_bytes: int


@dataclass(slots=True)
class MirrorPass:
    """What one look at the store has changed, and what failed."""

    copied: list[CopiedVersion] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # MODEL@VERSION
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A version that was not copied because it is damaged in the store."""

    objects: Objects  # of the version, as they were
    at_s: float
    problem: str


class Mirror:
    """Follows one store. Remembers what it has seen there, so that a look costs a listing."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        kept_versions: int = KEPT_VERSIONS,
        remove_after_s: float = REMOVE_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the options.

        Args:
            store: where the versions are published.
            folder: for the copy: `repository`, and `incoming` for versions that are not complete.
            kept_versions: newest versions of each model to copy, beside those that aliases name.
            remove_after_s: from when a version is not needed until its copy is removed.
            clock: seconds; does not go backwards.
        """
        self.repository = Repository(folder / COPY)
        self._store = store
        self._folder = folder
        self._incoming = folder / "incoming"
        self._kept_versions = kept_versions
        self._remove_after_s = remove_after_s
        self._clock = clock
        self._seen: dict[str, str] = {}  # key of a manifest or of aliases -> state of what was copied
        self._refused: dict[str, _Refused] = {}  # by the key of its manifest
        self._unneeded_since_s: dict[tuple[str, int], float] = {}

    def look(self) -> MirrorPass:
        """Copy what is new, and remove what has not been needed for long. Call it in one thread at a time.

        What fails for one version is a problem of the result, and is tried again at the next look.

        Raises:
            OSError: the folder cannot be written.
            StoreError: the store cannot be listed. The copy stays.
        """
        result = MirrorPass()
        self.repository.root.mkdir(parents=True, exist_ok=True)
        with locked(self._folder):  # servers of one machine may share it
            objects = self._store.objects()
            aliases, unread = self._new_aliases(objects, result)
            if aliases:  # they may name versions that were published after the listing
                objects = self._store.objects()
            versions = published_versions(objects)
            if not versions and self.repository.models():
                raise StoreError(f"{self._store.url} has no versions: the copies of earlier ones stay")
            needed: set[tuple[str, int]] = set()
            for model, numbers in versions.items():
                needed.update((model, version) for version in self._wanted(model, numbers, aliases))
                if model not in unread:  # without its aliases a server would serve the newest version
                    self._follow_model(model, numbers, objects, aliases, result)
            self._clean_up(needed, objects, result)
        return result

    def fetch(self, model: str, version: int) -> None:
        """Copy one version, unless its copy is complete.

        Raises:
            BundleError: it is damaged.
            OSError: the folder cannot be written.
            StoreError: the store cannot be read.
            UnknownModel: the store has no such version.
        """
        base = f"{model}/{version}"
        self.repository.root.mkdir(parents=True, exist_ok=True)
        with locked(self._folder):
            objects = self._store.objects(base)
            if f"{base}/{MANIFEST_FILE}" not in objects:
                raise UnknownModel(f"{self._store.url} has no version {version} of model {model!r}")
            text = self._store.read(f"{base}/{MANIFEST_FILE}", MAX_MANIFEST_BYTES)
            if not self._has(model, version, text):
                self._copy(model, version, text, objects)

    def _new_aliases(self, objects: Objects, result: MirrorPass) -> tuple[Aliases, set[str]]:
        """Return each aliases.json that was not copied yet, and the models whose aliases cannot be read."""
        found: dict[str, tuple[str, bytes]] = {}
        unread: set[str] = set()
        for model in published_versions(objects):
            key = f"{model}/{ALIASES_FILE}"
            if key not in objects or self._seen.get(key) == objects[key].state:
                continue
            try:
                found[model] = objects[key].state, self._store.read(key, MAX_ALIASES_BYTES)
            except StoreError as error:
                result.problems.append(str(error))
                unread.add(model)
        return found, unread

    def _wanted(self, model: str, published: Sequence[int], aliases: Aliases) -> set[int]:
        """Return the versions whose copies are needed."""
        return {*published[-self._kept_versions :], *self._targets(model, aliases)}

    def _targets(self, model: str, aliases: Aliases) -> set[int]:
        try:
            if model in aliases:
                return set(
                    parse_aliases(aliases[model][1], self._store.url_of(f"{model}/{ALIASES_FILE}")).values()
                )
            return set(self.repository.aliases(model).values())
        except (BundleError, OSError):  # the server says so
            return set()

    def _follow_model(
        self, model: str, published: Sequence[int], objects: Objects, aliases: Aliases, result: MirrorPass
    ) -> None:
        """Copy the versions that aliases name, then the aliases, then the newest versions."""
        targets = self._targets(model, aliases)
        named = [version for version in published if version in targets]
        followed = [self._follow(model, version, objects, result) for version in named]
        if not all(followed):
            return  # aliases name only what is there, until the next look
        if model in aliases:
            self._write_aliases(model, *aliases[model], result)
        for version in reversed(published[-self._kept_versions :]):
            if version not in targets:
                self._follow(model, version, objects, result)

    def _follow(self, model: str, version: int, objects: Objects, result: MirrorPass) -> bool:
        """Copy one version, unless its copy is complete and has the same manifest.

        Returns: False if that failed, and may succeed at the next look; True also for damaged versions.
        """
        base = f"{model}/{version}"
        key = f"{base}/{MANIFEST_FILE}"
        state = objects[key].state
        if self._seen.get(key) == state and self.repository.folder(model, version).is_dir():
            return True
        of_version = {each: entry for each, entry in objects.items() if each.startswith(f"{base}/")}
        before, now_s = self._refused.get(key), self._clock()
        if before and before.objects == of_version and now_s - before.at_s < _RETRY_AFTER_S:
            result.problems.append(before.problem)
            return True
        try:
            text = self._store.read(key, MAX_MANIFEST_BYTES)
            if not self._has(model, version, text):
                result.copied.append(self._copy(model, version, text, of_version))
        except BundleError as error:
            result.problems.append(str(error))
            self._refused[key] = _Refused(of_version, now_s, str(error))
            return True
        except StoreError as error:
            result.problems.append(str(error))
            return False
        except OSError as error:
            result.problems.append(f"{self._store.url_of(base)} cannot be kept in {self._folder}: {error}")
            return False
        self._seen[key] = state
        self._refused.pop(key, None)
        return True

    def _has(self, model: str, version: int, text: bytes) -> bool:
        """Whether the copy has this manifest, and files that match it."""
        try:
            return self.repository.read(model, version).digest == hashlib.sha256(text).hexdigest()
        except (LenserveError, OSError):
            return False

    def _copy(self, model: str, version: int, text: bytes, objects: Objects) -> CopiedVersion:
        digest = hashlib.sha256(text).hexdigest()
        incoming = self._incoming / f"{model}-{version}-{digest}"
        size_bytes = copy_version(self._store, f"{model}/{version}", text, objects, incoming)
        self._move_in(incoming, model, version)
        return CopiedVersion(model, version, digest, size_bytes)

    def _move_in(self, incoming: Path, model: str, version: int) -> None:
        model_folder = self.repository.model_folder(model)
        model_folder.mkdir(exist_ok=True)
        folder = self.repository.folder(model, version)
        with locked(model_folder):
            if folder.exists():  # damaged, or another version that had the number
                remove_folder(folder)
            incoming.rename(folder)
            sync(model_folder)

    def _write_aliases(self, model: str, state: str, content: bytes, result: MirrorPass) -> None:
        folder = self.repository.model_folder(model)
        try:
            folder.mkdir(exist_ok=True)
            _replace_if_other(folder, content)
        except OSError as error:
            result.problems.append(f"the aliases of model {model!r} cannot be kept in {folder}: {error}")
        else:
            self._seen[f"{model}/{ALIASES_FILE}"] = state

    def _clean_up(self, needed: set[tuple[str, int]], objects: Objects, result: MirrorPass) -> None:
        """Remove what the store has no more: aliases at once, versions later."""
        now_s = self._clock()
        for model in self.repository.model_folders():
            key = f"{model}/{ALIASES_FILE}"
            if key not in objects:
                (self.repository.model_folder(model) / ALIASES_FILE).unlink(missing_ok=True)
                self._seen.pop(key, None)
            for copy in [(model, version) for version in self.repository.versions(model)]:
                if copy in needed:
                    self._unneeded_since_s.pop(copy, None)
                elif now_s - self._unneeded_since_s.setdefault(copy, now_s) >= self._remove_after_s:
                    self._remove(*copy, result)
        for folder in self._incoming.glob("*-*-*"):
            model, version, _ = folder.name.rsplit("-", 2)
            if (model, int(version)) not in needed:
                shutil.rmtree(folder)

    def _remove(self, model: str, version: int, result: MirrorPass) -> None:
        folder = self.repository.model_folder(model)
        try:
            with locked(folder):
                remove_folder(self.repository.folder(model, version))
            if not self.repository.versions(model):
                shutil.rmtree(folder)
        except OSError as error:
            result.problems.append(f"the copy of version {version} of model {model!r} stays: {error}")
            return
        del self._unneeded_since_s[model, version]
        self._seen.pop(f"{model}/{version}/{MANIFEST_FILE}", None)
        result.removed.append(f"{model}@{version}")


def published_versions(objects: Objects) -> dict[str, list[int]]:
    """Return the versions of each model, in ascending order: those that have a manifest, which comes last."""
    found: dict[str, list[int]] = {}
    for key in objects:
        model, _, rest = key.partition("/")
        number, _, name = rest.partition("/")
        if name == MANIFEST_FILE and is_version_name(number) and NAME_PATTERN.fullmatch(model):
            found.setdefault(model, []).append(int(number))
    return {model: sorted(numbers) for model, numbers in sorted(found.items())}


def _replace_if_other(folder: Path, content: bytes) -> None:
    """Replace aliases.json if it differs: servers look at its time."""
    try:
        if read_limited(folder / ALIASES_FILE, MAX_ALIASES_BYTES) == content:
            return
    except OSError:  # missing, or not a file
        pass
    with locked(folder):
        replace_bytes(folder / ALIASES_FILE, content)
        sync(folder)
