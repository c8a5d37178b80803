"""Lists, reads, verifies, publishes and aliases the versions on disk: <repository>/<model>/<version>/.

Readers see all of a version or nothing: staging.py.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serving.bundle.aliases import (
    ALIASES_FILE,
    Action,
    AliasChange,
    new_change,
    read_aliases,
    require_expected,
    write_change,
)
from serving.bundle.damage import is_damage
from serving.bundle.golden import Golden, read_golden
from serving.bundle.looks_like import is_version_name, why_not_a_model, why_not_a_version
from serving.bundle.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    NAME_ALLOWED,
    NAME_PATTERN,
    Description,
    FileDigest,
    Manifest,
)
from serving.bundle.staging import (
    locked,
    remove_folder,
    replace_text,
    require_writable,
    staging_folder,
    sync,
)
from serving.errors import BundleError, DigestMismatch, InvalidManifest, UnknownModel
from serving.limited_files import open_regular, read_limited, why_unreadable

STABLE_ALIAS = "stable"  # names the version that is served by default
MAX_MANIFEST_BYTES = 16 * 2**20  # 100,000 labels and their digests take 5 MB
EMPTIED_FILE = ".emptied"  # in a repository whose last model was removed: its volume is mounted
LAST_VERSION_FILE = ".last_version"  # highest number ever published: a removed one is not used again
CLAIMS_FOLDER = ".versions"  # in an object store: an object for each number that was ever published
MAX_NUMBER_BYTES = 64
_MAX_LISTED = 10  # newest versions in a message
_REMEDY = "restore the published file, or publish a new version"


@dataclass(frozen=True, slots=True)
class Bundle:
    """One version on disk. `Repository.read` compares every file with its digest."""

    model: str
    version: int
    folder: Path
    manifest: Manifest
    digest: str  # SHA-256 of manifest.json, which holds the digests of all other files

    @property
    def model_file(self) -> Path:
        """Path of the exported ONNX file."""
        return self.folder / MODEL_FILE

    def golden(self) -> Golden:
        """Read golden.npz.

        Raises:
            BundleError: see `read_golden`.
        """
        return read_golden(self.folder, self.manifest)

    def verify(self, name: str) -> None:
        """Compare a file with its digest.

        Args:
            name: a key of `manifest.files`.

        Raises:
            DigestMismatch: the file is missing or differs from its digest.
        """
        verify_file(self.folder / name, self.manifest.files[name])


class Repository:
    """A folder of models, each a folder of versions 1, 2, 3, ..."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def models(self) -> list[str]:
        """Return the names of all models with at least one version, or whose folder cannot be read, sorted.

        Raises:
            OSError: the repository cannot be read.
        """
        return [name for name in self.model_folders() if self._may_have_versions(name)]

    def has_model(self, name: str) -> bool:
        """Whether there is such a model, with a version, or whose folder cannot be read.

        Reads no other model.

        Raises:
            OSError: the repository cannot be read.
        """
        return name in self.model_folders() and self._may_have_versions(name)

    def model_folders(self) -> list[str]:
        """Return the names of all folders that may be models, also empty ones, sorted.

        Reads nothing inside of them.

        Raises:
            OSError: the repository cannot be read.
        """
        try:
            with os.scandir(self.root) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if NAME_PATTERN.fullmatch(entry.name)
                    and (entry.is_symlink() or entry.is_dir(follow_symlinks=False))
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def overlooked(self, model: str | None = None) -> list[str]:
        """Return what looks like a model or a version but is not taken as one, and why, sorted.

        Args:
            model: looks into the folder of this model; None: into the repository.

        Raises:
            OSError: the folder cannot be read.
        """
        folder = self.root if model is None else self.model_folder(model)
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if _may_be_folder(entry))
        why = why_not_a_model if model is None else why_not_a_version
        found = ((folder / name, why(folder / name)) for name in names if not name.startswith("."))
        return [f"{path}: {reason}" for path, reason in found if reason]

    def _may_have_versions(self, model: str) -> bool:
        try:
            return bool(self.versions(model))
        except OSError:
            return True

    def versions(self, model: str) -> list[int]:
        """Return the version numbers of a model, in ascending order.

        Raises:
            UnknownModel: the name is not a valid model name.
            OSError: the folder cannot be read.
        """
        try:
            with os.scandir(self.model_folder(model)) as entries:
                found = [each for each in entries if is_version_name(each.name) and _may_be_folder(each)]
                return sorted(int(each.name) for each in found)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folder(self, model: str, version: int) -> Path:
        """Return the path of a version. It need not exist.

        Raises:
            UnknownModel: the name is not a valid model name.
        """
        return self.model_folder(model) / str(version)

    def location(self, model: str, version: int | None = None) -> str:
        """Return where a model or a version is, for people: its folder, or its URL."""
        folder = self.model_folder(model)
        return str(folder if version is None else folder / str(version))

    def read(self, model: str, version: int) -> Bundle:
        """Read a version and verify every digest of its manifest.

        Raises:
            UnknownModel: the repository has no such version.
            InvalidManifest: manifest.json is missing or invalid.
            DigestMismatch: a file is missing or differs from its digest.
        """
        bundle = self.read_manifest(model, version)
        for name in bundle.manifest.files:
            bundle.verify(name)
        return bundle

    def look_up(self, model: str, version: int) -> Bundle:
        """Read a version to show it: verified, unless that means to transfer its files.

        Raises:
            BundleError, UnknownModel: as `read`.
        """
        return self.read(model, version)

    def read_manifest(self, model: str, version: int) -> Bundle:
        """Read a version without its other files: `Bundle.verify` has not been called for any of them.

        Raises:
            UnknownModel: the repository has no such version.
            InvalidManifest: manifest.json is missing or invalid.
        """
        folder = self.folder(model, version)
        try:
            text = read_limited(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) and not folder.is_dir():
                raise UnknownModel(f"the repository has no version {version} of model {model!r}") from None
            raise InvalidManifest(
                f"{folder / MANIFEST_FILE} cannot be read: {why_unreadable(error)}"
            ) from error
        try:
            manifest = Manifest.from_json(text)
        except InvalidManifest as error:
            raise InvalidManifest(f"{folder / MANIFEST_FILE}: {error}") from error
        return Bundle(model, version, folder, manifest, hashlib.sha256(text).hexdigest())

    def prepare(self, model: str) -> None:
        """Find what would prevent that a version is published, as far as that needs no version.

        Raises:
            BundleError: the name is not a valid model name, or the directory cannot be written.
            LenserveError: it cannot be published.
        """
        require_name(model)
        try:
            require_writable(self.model_folder(model))
        except OSError as error:
            raise BundleError(
                f"the repository {self.root} cannot be written: {error.strerror}; make room, correct its "
                "permissions, or choose another directory"
            ) from error

    def publish(self, model: str, write: Callable[[Path], Description]) -> Bundle:
        """Publish the next version of a model: all of it, or nothing. Numbers are never used twice.

        Args:
            model: 1..128 letters, digits, '.', '_' and '-', a letter or digit first.
            write: writes the files to a folder and returns their description. If it raises, nothing is
                published.

        Raises:
            BundleError: the name is not a valid model name.
            InvalidManifest: a required file is missing.
        """
        require_name(model)
        model_folder = self.model_folder(model)
        model_folder.mkdir(parents=True, exist_ok=True)
        with staging_folder(model_folder) as staging:
            manifest = seal(staging, write(staging))
            with locked(model_folder):
                version = max((_last_version(model_folder), *self.versions(model))) + 1
                replace_text(model_folder / LAST_VERSION_FILE, f"{version}\n")
                staging.rename(self.folder(model, version))
                sync(model_folder)
                os.utime(model_folder / LAST_VERSION_FILE)  # servers look at it: now the version is there
        with suppress(OSError):
            (self.root / EMPTIED_FILE).unlink()
        digest = hashlib.sha256(manifest.to_json()).hexdigest()
        return Bundle(model, version, self.folder(model, version), manifest, digest)

    def aliases(self, model: str) -> Mapping[str, int]:
        """Read aliases.json: alias -> version; empty if the file is missing.

        Raises:
            BundleError: aliases.json is invalid.
            OSError: it cannot be read.
            UnknownModel: the name is not a valid model name.
        """
        return read_aliases(self.model_folder(model))

    def files_of_changes(self, model: str) -> tuple[Path, Path]:
        """Return the paths of the files that each publication and change of an alias writes when it is done.

        They need not exist.

        Raises:
            UnknownModel: the name is not a valid model name.
        """
        folder = self.model_folder(model)
        return folder / ALIASES_FILE, folder / LAST_VERSION_FILE

    def set_alias(
        self, model: str, alias: str, version: int, *, expect: int | None = None, reason: str = ""
    ) -> AliasChange | None:
        """Point an alias at a version, and log it: both, or nothing.

        Args:
            model: its name.
            alias: a name that is not a number.
            version: a version of the model.
            expect: version that the alias must name now; 0: there must be no such alias; None: any.
            reason: why, for the log.

        Returns: the change; None if the alias already names that version.

        Raises:
            AliasMoved: the alias does not name the expected version.
            BundleError: the alias is not a valid name, or is a number; or aliases.json or its log is invalid.
            UnknownModel: the repository has no such version.
        """
        if not NAME_PATTERN.fullmatch(alias) or alias.isdigit():
            raise BundleError(f"{alias!r} is not a valid alias: use {NAME_ALLOWED}, and not a number")
        self.require_version(model, version)
        with self.changing(model) as folder:
            self.require_version(model, version)  # it may have been removed meanwhile
            now = read_aliases(folder).get(alias)
            require_expected(now, model, alias, expect)
            if now == version:
                return None
            return self.write_alias(folder, model, "set", alias, version, reason)

    def write_alias(  # noqa: PLR0917 - the change
        self, folder: Path, model: str, action: Action, alias: str, version: int | None, reason: str
    ) -> AliasChange:
        """Change an alias, and log it: both, or nothing.

        Args:
            folder: that `changing` gives; the caller is inside of it, and has checked the rest.
            model: its name.
            action: what the log calls the change.
            alias: its name.
            version: that it names then; None: it is removed.
            reason: why, for the log.

        Raises:
            BundleError: aliases.json or its log is invalid.
            OSError, StoreError: something cannot be read or written.
        """
        before = read_aliases(folder).get(alias)
        is_first = alias == STABLE_ALIAS and before is None and version is not None
        served = self._newest_intact(model) if is_first else None
        change = new_change(action, alias, before, version, reason, served)
        write_change(folder, change)
        return change

    def _newest_intact(self, model: str) -> int | None:
        """Return the newest version that is not known to be damaged: served while there is no `stable`.

        Transfers no files. A file that cannot be read now does not keep an alias from being changed.
        """
        for version in reversed(self.versions(model)):
            try:
                self.look_up(model, version)
            except (BundleError, UnknownModel) as error:
                if is_damage(error):
                    continue
            return version
        return None

    @contextmanager
    def changing(self, model: str, *, shared: bool = False) -> Iterator[Path]:
        """Give a folder with the aliases of a model and their log, to be read and changed: see aliases.py.

        Args:
            model: its name.
            shared: nothing is changed.

        Raises:
            UnknownModel: the name is not a valid model name.
        """
        folder = self.model_folder(model)
        with locked(folder, shared=shared):
            yield folder

    def remove_versions(self, model: str, versions: Sequence[int]) -> None:
        """Remove versions, all of each or nothing. Their numbers are not used again.

        The caller is in `changing`, and has found that no alias names them.
        """
        if versions:
            _keep_last_version(self.model_folder(model), self.versions(model)[-1])
        for version in versions:
            remove_folder(self.folder(model, version))

    def remove_model(self, model: str) -> None:
        """Remove all of a model, or nothing; of a later one of that name, numbers begin again at 1.

        The caller is in `changing`.
        """
        remove_folder(self.model_folder(model))
        if not self.model_folders():
            replace_text(self.root / EMPTIED_FILE, f"{model}\n")

    def was_emptied(self) -> bool:
        """Whether the last model was removed: if there is none now, no volume is missing."""
        return (self.root / EMPTIED_FILE).exists()

    def require_version(self, model: str, version: int) -> None:
        """Check that a version exists. Reads none of its files.

        Raises:
            UnknownModel: the repository has no such version.
        """
        versions = self.versions(model)
        if version not in versions:
            raise UnknownModel(
                f"the repository has no version {version} of model {model!r}; its newest versions: "
                f"{', '.join(map(str, versions[-_MAX_LISTED:])) or 'none'}"
            )

    def model_folder(self, model: str) -> Path:
        """Return the path of a model. It need not exist.

        Raises:
            UnknownModel: the name is not a valid model name.
        """
        if not NAME_PATTERN.fullmatch(model):
            raise UnknownModel(f"{model!r} is not a valid model name")
        return self.root / model


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link whose target cannot be read: reading that says why."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def require_name(model: str) -> None:
    """Check the name of a model.

    Raises:
        BundleError: it is not valid.
    """
    if not NAME_PATTERN.fullmatch(model):
        raise BundleError(f"{model!r} is not a valid model name: use {NAME_ALLOWED}")


def verify_file(path: Path, expected: FileDigest) -> None:
    """Compare a file with its digest.

    Raises:
        DigestMismatch: it is missing, or differs.
    """
    try:
        with open_regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            is_read = size_bytes == expected.size_bytes  # otherwise it may be far too large
            sha256 = hashlib.file_digest(file, "sha256").hexdigest() if is_read else ""
    except OSError as error:
        raise DigestMismatch(f"{path} cannot be read: {why_unreadable(error)}") from error
    if not is_read:
        raise DigestMismatch(
            f"{path} has {size_bytes} bytes, its manifest says {expected.size_bytes}; {_REMEDY}"
        )
    if sha256 != expected.sha256:
        raise DigestMismatch(f"{path} has SHA-256 {sha256}, its manifest says {expected.sha256}; {_REMEDY}")


def _digest(path: Path) -> FileDigest:
    with open_regular(path) as file:
        return FileDigest(
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
            size_bytes=os.fstat(file.fileno()).st_size,
        )


def _keep_last_version(model_folder: Path, version: int) -> None:
    """Record a number that was published; old versions of Lenserve did not. The caller holds the lock."""
    if version > _last_version(model_folder):
        replace_text(model_folder / LAST_VERSION_FILE, f"{version}\n")


def _last_version(model_folder: Path) -> int:
    """Return the highest number ever published; 0 if none is recorded, as in repositories of old versions."""
    recorded = 0
    with suppress(FileNotFoundError):
        recorded = parse_last_version(read_limited(model_folder / LAST_VERSION_FILE, MAX_NUMBER_BYTES))
    claims: list[str] = []
    with suppress(FileNotFoundError, NotADirectoryError):  # of a copy of an object store
        claims = [path.name for path in (model_folder / CLAIMS_FOLDER).iterdir()]
    return max([recorded, *(int(name) for name in claims if is_version_name(name))])


def parse_last_version(content: bytes) -> int:
    """Return the number in a .last_version; 0 if it is invalid."""
    text = content.strip().decode("ascii", "replace")
    return int(text) if is_version_name(text) else 0


def seal(staging: Path, description: Description) -> Manifest:
    """Write the manifest with the digests of all files, and sync everything to disk."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    manifest = Manifest.seal(
        description, {path.relative_to(staging).as_posix(): _digest(path) for path in files}
    )
    (staging / MANIFEST_FILE).write_bytes(manifest.to_json())
    # As the umask says. Some libraries write files for their own user alone, and a server may be another one.
    mode = stat.S_IMODE((staging / MANIFEST_FILE).stat().st_mode)
    for path in files:
        path.chmod(mode)
    for path in (*staging.rglob("*"), staging):
        sync(path)
    return manifest
