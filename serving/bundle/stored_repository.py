"""A repository in an object store, for publishers and operators: writes go there, reads copy what they need.

To publish, a number is claimed by creating `<model>/.versions/<number>`, which stays for ever; then come the
files, and manifest.json last. A version exists once its manifest does, and is removed in the other order. If
a publisher is killed, a later one removes its files. Aliases are replaced only if they were not changed since
they were read.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.bundle.aliases import (
    ALIASES_FILE,
    HISTORY_FILE,
    MAX_ALIASES_BYTES,
    MAX_HISTORY_BYTES,
    parse_aliases,
)
from serving.bundle.looks_like import is_version_name
from serving.bundle.manifest import MANIFEST_FILE, Description, Manifest
from serving.bundle.mirror import Mirror, published_versions
from serving.bundle.repository import (
    CLAIMS_FOLDER,
    LAST_VERSION_FILE,
    MAX_MANIFEST_BYTES,
    MAX_NUMBER_BYTES,
    Bundle,
    Repository,
    parse_last_version,
    require_name,
    seal,
)
from serving.bundle.staging import locked, remove_folder, staging_folder, sync
from serving.bundle.store import Objects, Store
from serving.bundle.urls import copy_folder, is_url
from serving.bundle.who import who
from serving.errors import (
    AliasMoved,
    BundleError,
    InvalidManifest,
    StoreConflict,
    StoreError,
    UnknownModel,
    UsageError,
)

_MAX_CLAIMS = 100  # numbers to try, if others publish at once
_MAX_CLAIM_BYTES = 4096
_ABANDONED_AFTER_S = 86_400  # since the number was claimed: no publication takes a day
_KEEP_COPIES_S = 7 * 86_400  # after which a copy that was not read is removed


def open_repository(location: str, cache: Path, *, must_exist: bool = True) -> Repository:
    """Return the repository in a directory or behind a URL.

    Args:
        location: directory or URL.
        cache: for copies of versions behind URLs.
        must_exist: whether a directory must be there.

    Raises:
        UsageError: it is not a directory; or the cache has no place.
    """
    if is_url(location):
        return StoredRepository(Store(location), copy_folder(location, cache) / "publisher")
    root = Path(location)
    if not root.is_dir() and (must_exist or root.exists()):
        raise UsageError(f"the repository {root} is not a directory: set another --repository")
    return Repository(root)


class StoredRepository(Repository):
    """Reads and writes an object store. `root` has copies of the versions that were read or published."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Store the options.

        Args:
            store: where the repository is.
            folder: for copies.
        """
        self._store = store
        self._mirror = Mirror(store, folder)
        super().__init__(self._mirror.repository.root)

    def __str__(self) -> str:
        return self._store.url

    def location(self, model: str, version: int | None = None) -> str:
        """Return the URL of a model or a version."""
        return self._store.url_of(model if version is None else f"{model}/{version}")

    def models(self) -> list[str]:
        """Return the names of all models with at least one version, sorted."""
        return list(published_versions(self._store.objects()))

    def model_folders(self) -> list[str]:
        """Return the same: stores have no empty folders."""
        return self.models()

    def overlooked(self, model: str | None = None) -> list[str]:  # noqa: ARG002 - of directories
        """Return nothing: the mirror of a server copies only versions."""
        return []

    def versions(self, model: str) -> list[int]:
        """Return the version numbers of a model in the store, in ascending order."""
        self.model_folder(model)  # checks the name
        return published_versions(self._store.objects(model)).get(model, [])

    def read(self, model: str, version: int) -> Bundle:
        """Copy a version, and verify every digest of its manifest."""
        self._mirror.fetch(model, version)
        os.utime(self.folder(model, version))
        self._remove_old_copies()
        return super().read(model, version)

    def look_up(self, model: str, version: int) -> Bundle:
        """Read a version to show it: only its manifest."""
        return self.read_manifest(model, version)

    def read_manifest(self, model: str, version: int) -> Bundle:
        """Read a version without its other files, which are not copied."""
        self.require_version(model, version)
        text = self._store.read(f"{model}/{version}/{MANIFEST_FILE}", MAX_MANIFEST_BYTES)
        try:
            manifest = Manifest.from_json(text)
        except InvalidManifest as error:
            raise InvalidManifest(f"{self._store.url}/{model}/{version}: {error}") from error
        digest = hashlib.sha256(text).hexdigest()
        return Bundle(model, version, self.folder(model, version), manifest, digest)

    def aliases(self, model: str) -> Mapping[str, int]:
        """Read aliases.json: alias -> version; empty if it is missing."""
        self.model_folder(model)  # checks the name
        content, _ = self._read(f"{model}/{ALIASES_FILE}", MAX_ALIASES_BYTES)
        return {} if content is None else self._parse_aliases(model, content)

    def _parse_aliases(self, model: str, content: bytes) -> Mapping[str, int]:
        return parse_aliases(content, self._store.url_of(f"{model}/{ALIASES_FILE}"))

    def prepare(self, model: str) -> None:
        """Check that a version can be published: the store answers, can be written, and is atomic."""
        require_name(model)
        self._store.require_conditional_writes(f"{model}/{CLAIMS_FOLDER}/0")

    def publish(self, model: str, write: Callable[[Path], Description]) -> Bundle:
        """Publish the next version of a model: all of it, or nothing. Numbers are never used twice."""
        self.prepare(model)
        model_folder = self.model_folder(model)
        model_folder.mkdir(parents=True, exist_ok=True)
        with staging_folder(model_folder) as staging:
            manifest = seal(staging, write(staging))
            objects = self._store.objects(model)
            self._remove_abandoned(model, objects)
            version = self._claim(model, objects)
            self._upload(f"{model}/{version}", staging, manifest)
            with locked(model_folder):
                if self.folder(model, version).exists():  # of a store that was emptied since
                    remove_folder(self.folder(model, version))
                staging.rename(self.folder(model, version))
                sync(model_folder)
        digest = hashlib.sha256(manifest.to_json()).hexdigest()
        return Bundle(model, version, self.folder(model, version), manifest, digest)

    def remove_versions(self, model: str, versions: Sequence[int]) -> None:
        """Remove versions, each with its manifest first. Their numbers are not used again.

        Another operator may point an alias at one meanwhile. Both look at what the other writes after they
        have written: so the manifest is put back, or the alias is not changed, or both.

        Raises:
            AliasMoved: an alias names one of them now. It stays, and so do those after it.
            StoreError: one cannot be removed.
        """
        for version in versions:
            key = f"{model}/{version}/{MANIFEST_FILE}"
            with suppress(StoreConflict):  # a version that was copied into the store has no claim
                self._store.create(f"{model}/{CLAIMS_FOLDER}/{version}", _new_claim())
            manifest = self._store.read(key, MAX_MANIFEST_BYTES)
            self._store.remove_object(key)
            if version in self.aliases(model).values():
                self._store.create(key, manifest)
                raise AliasMoved(
                    f"version {version} of model {model!r} is not removed: another operator pointed an alias "
                    f"at it meanwhile; look at `lenserve models history {model}`"
                )
            self._store.remove(f"{model}/{version}")

    def remove_model(self, model: str) -> None:
        """Remove the aliases of a model, then its versions, so that a killed command can be repeated.

        Numbers are not used again, since servers have copies of their versions.

        Raises:
            AliasMoved: another operator set an alias meanwhile.
            StoreError: something cannot be removed.
        """
        for file in (ALIASES_FILE, HISTORY_FILE):
            if self._store.tag(f"{model}/{file}") is not None:
                self._store.remove_object(f"{model}/{file}")
        self.remove_versions(model, self.versions(model))

    @contextmanager
    def changing(self, model: str, *, shared: bool = False) -> Iterator[Path]:
        """Give a folder with copies of the aliases and their log, and replace the objects at the end.

        Raises:
            AliasMoved: another operator changed them meanwhile; nothing is changed.
        """
        self.model_folder(model)  # checks the name
        keys = f"{model}/{ALIASES_FILE}", f"{model}/{HISTORY_FILE}"
        with tempfile.TemporaryDirectory(prefix="lenserve-") as name:
            folder = Path(name)
            aliases, aliases_tag = self._read(keys[0], MAX_ALIASES_BYTES)
            log, log_tag = self._read(keys[1], MAX_HISTORY_BYTES)
            for file, content in ((ALIASES_FILE, aliases), (HISTORY_FILE, log)):
                if content is not None:
                    (folder / file).write_bytes(content)
            try:
                yield folder
            except BundleError as error:  # names the copy
                said = str(error).replace(name, self._store.url_of(model))
                raise type(error)(said) from error
            changed = _content(folder / ALIASES_FILE)
            if shared or changed is None or changed == aliases:
                return
            new_log = (folder / HISTORY_FILE).read_bytes()
            try:
                # As in a directory: a line of the log without an end counts only if aliases.json agrees.
                self._store.replace(keys[1], new_log.removesuffix(b"\n"), log_tag)
                self._store.replace(keys[0], changed, aliases_tag)
                self._require_targets(model, aliases or b"{}\n", changed)
            except StoreConflict as error:
                raise AliasMoved(
                    f"the aliases of model {model!r} were changed by another operator meanwhile: nothing is "
                    f"changed; look at `lenserve models history {model}`, and repeat the command"
                ) from error
            with suppress(StoreError):  # the next change ends the line
                self._store.replace(keys[1], new_log, self._store.tag(keys[1]))

    def _read(self, key: str, max_bytes: int) -> tuple[bytes | None, str | None]:
        """Return content and tag of an object, None if it is missing. The content may be newer."""
        tag = self._store.tag(key)
        return (None, None) if tag is None else (self._store.read(key, max_bytes), tag)

    def _require_targets(self, model: str, before: bytes, now: bytes) -> None:
        """Take a change of aliases back if it names a version that was removed meanwhile.

        Raises:
            UnknownModel: it does.
        """
        targets = {*self._parse_aliases(model, now).values()}
        targets -= {*self._parse_aliases(model, before).values()}
        gone = targets - {*self.versions(model)}
        if gone:
            key = f"{model}/{ALIASES_FILE}"
            with suppress(StoreConflict):  # a third operator has changed them since
                self._store.replace(key, before, self._store.tag(key))
            raise UnknownModel(
                f"version {min(gone)} of model {model!r} was removed by another operator meanwhile: no alias "
                "is changed; choose another version"
            )

    def _remove_abandoned(self, model: str, objects: Objects) -> None:
        """Remove the files of publishers that died before their manifest, and of versions half removed."""
        published = published_versions(objects).get(model, [])
        numbers = {int(number) for _, number, _ in _parts(objects) if is_version_name(number)}
        for number in sorted(numbers - {*published}):
            key = f"{model}/{CLAIMS_FOLDER}/{number}"
            if key not in objects:
                continue  # another program copies it
            with suppress(StoreError, ValueError, TypeError, KeyError):  # the next publisher tries again
                claim = json.loads(self._store.read(key, _MAX_CLAIM_BYTES))
                if time.time() - claim["at"] / 1e9 > _ABANDONED_AFTER_S:
                    self._store.remove(f"{model}/{number}")

    def _claim(self, model: str, objects: Objects) -> int:
        """Return a number that no publisher had before."""
        used = [rest if folder == CLAIMS_FOLDER else folder for _, folder, rest in _parts(objects)]
        last = max((int(number) for number in used if is_version_name(number)), default=0)
        if f"{model}/{LAST_VERSION_FILE}" in objects:  # of a directory that was copied here
            recorded = self._store.read(f"{model}/{LAST_VERSION_FILE}", MAX_NUMBER_BYTES)
            last = max(last, parse_last_version(recorded))
        claim = _new_claim()
        for number in range(last + 1, last + 1 + _MAX_CLAIMS):
            with suppress(StoreConflict):
                self._store.create(f"{model}/{CLAIMS_FOLDER}/{number}", claim)
                return number
        raise BundleError(
            f"{_MAX_CLAIMS} numbers after {last} of model {model!r} are taken in {self._store.url}: others "
            "publish at the same time; publish again"
        )

    def _upload(self, base: str, staging: Path, manifest: Manifest) -> None:
        try:
            for name in manifest.files:
                self._store.put(staging / name, f"{base}/{name}")
            self._require_uploaded(base, manifest)
        except BaseException:
            with suppress(StoreError):
                self._store.remove(base)
            raise
        self._store.create(f"{base}/{MANIFEST_FILE}", manifest.to_json())

    def _require_uploaded(self, base: str, manifest: Manifest) -> None:
        objects = self._store.objects(base)
        for name, file in manifest.files.items():
            stored = objects.get(f"{base}/{name}")
            if stored is None or stored.size_bytes != file.size_bytes:
                found = "is missing" if stored is None else f"has {stored.size_bytes} bytes"
                raise StoreError(
                    f"{self._store.url_of(base)}/{name} {found} after it was written, expected "
                    f"{file.size_bytes} bytes: nothing is published; publish again"
                )

    def _remove_old_copies(self) -> None:
        oldest_s = time.time() - _KEEP_COPIES_S
        for folder in self.root.glob("*/*"):
            if is_version_name(folder.name) and folder.stat().st_mtime < oldest_s:
                shutil.rmtree(folder, ignore_errors=True)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parts(objects: Objects) -> Iterator[tuple[str, str, str]]:
    """Yield model, folder and the rest of the path of each object in a folder of a model."""
    for key in objects:
        model, _, below = key.partition("/")
        folder, _, rest = below.partition("/")
        if rest:
            yield model, folder, rest


def _new_claim() -> bytes:
    return json.dumps({"by": who(), "at": time.time_ns(), "process": os.urandom(8).hex()}).encode()
