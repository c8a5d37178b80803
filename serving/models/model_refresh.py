"""Decides which versions of one model are served.

The default is the target of the alias `stable`, or else the newest version that loads. The targets of other
aliases are also served. A version that fails to load is refused, and never replaces one that works. Where
nothing is served yet, the newest version that loads is better than none: if `stable` cannot be served, or if
the aliases cannot be read.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from serving.bundle import MANIFEST_FILE, STABLE_ALIAS, Bundle, Repository
from serving.errors import BundleError, InvalidManifest, UnknownModel
from serving.limited_files import describe_failure, is_unfit
from serving.models.folder_threads import FolderThreads
from serving.models.loader import VersionLoader
from serving.models.overlooked import Overlooked
from serving.models.versions import Model, Version

Load = Callable[[str, int], Awaitable[Version | None]]


@dataclass(frozen=True, slots=True)
class _Folder:
    """What the folder of a model says."""

    numbers: Sequence[int]
    aliases: Mapping[str, int]
    problem: str = ""  # why it cannot be followed


class ModelRefresher:
    """Reads the folder of a model, loads what is new, and returns what to serve."""

    def __init__(
        self,
        loader: VersionLoader,
        load: Load,
        overlooked: Overlooked,
        threads: FolderThreads,
        loading: Collection[tuple[str, int]] = (),
    ) -> None:
        """Store the options.

        Args:
            loader: knows the repository, and which versions were refused.
            load: loads a version; returns None if that fails, or is not done yet.
            overlooked: logs folders that look like versions.
            threads: read folders.
            loading: the models and versions that are loading now.
        """
        self._repository = loader.repository
        self._overlooked = overlooked
        self._refused = loader.refused
        self._load = load
        self._threads = threads
        self._loading = loading

    async def refresh(self, old: Model) -> Model | None:
        """Return the model as it is to be served now; None if its folder is not a model: it has no versions.

        Args:
            old: as it is served.

        Raises:
            OSError, LenserveError: it cannot be read. What is served should stay.
        """
        folder = await self._threads.run(partial(self._read, old))
        if not (folder.numbers or old.versions or old.refused):
            return None
        versions: dict[int, Version] = {}
        default = await self._choose(folder, old, versions)
        stable = folder.aliases.get(STABLE_ALIAS)
        problem = folder.problem
        if stable not in (None, default):
            why = "cannot be served: publish it, or move the alias"
            if (old.name, stable) in self._loading:
                why = "is still loading"
            problem = f"its alias {STABLE_ALIAS!r} names version {stable}, which {why}"
        refused = self._refused(old.name, (*folder.numbers, *folder.aliases.values()))
        return Model(old.name, versions, folder.aliases, default, refused, problem)

    def _read(self, old: Model) -> _Folder:
        """Read the folder of a model. Called in a thread."""
        numbers = self._repository.versions(old.name)
        if not numbers and old.versions:
            raise FileNotFoundError(
                "its folder is empty: what was loaded is served on; restore it, or remove it"
            )
        self._overlooked.log_new(old.name)
        try:
            aliases = self._repository.aliases(old.name)
        except (OSError, BundleError) as error:
            if old.versions:
                raise
            return _Folder(numbers, {}, f"its aliases are ignored: {describe_failure(error)}")
        changes = (why_changed(self._repository, version) for version in old.versions.values())
        return _Folder(numbers, aliases, "; ".join(filter(None, changes)))

    async def _choose(self, folder: _Folder, old: Model, chosen: dict[int, Version]) -> int | None:
        """Fill `chosen` with all versions to serve, load new ones, and return the number of the default."""
        newest_first = sorted(folder.numbers, reverse=True)
        stable = folder.aliases.get(STABLE_ALIAS)
        preferred = newest_first if stable is None else [stable]
        if stable is not None and old.default is None:
            preferred += newest_first
        default = await self._first_loadable(preferred, old, chosen)
        for number in sorted(set(folder.aliases.values()) - set(chosen)):
            await self._first_loadable([number], old, chosen)
        if default is None and old.default is not None:
            default = old.default
            chosen[default] = old.versions[default]
        return default

    async def _first_loadable(
        self, numbers: Sequence[int], old: Model, chosen: dict[int, Version]
    ) -> int | None:
        """Add the first version that is loaded or loads now to `chosen`, and return its number."""
        for number in numbers:
            version = old.versions.get(number) or await self._load(old.name, number)
            if version is not None:
                chosen[number] = version
                return number
        return None


def why_changed(repository: Repository, version: Version) -> str:
    """Return why the files of a loaded version are not those that were loaded; nothing if they are.

    Called in a thread. Files that are missing or cannot be read are not a change.
    """
    bundle = version.bundle
    try:
        stat = (bundle.folder / MANIFEST_FILE).stat()
        seen = stat.st_ctime_ns, stat.st_ino, stat.st_size
        if version.manifest_seen != seen:
            version.manifest_change = _describe_change(repository, bundle)
            version.manifest_seen = seen
    except (OSError, BundleError, UnknownModel):
        return ""
    return version.manifest_change


def _describe_change(repository: Repository, loaded: Bundle) -> str:
    """Describe how the manifest on disk differs from the loaded one; nothing if it does not.

    Raises:
        BundleError, UnknownModel: it cannot be read.
    """
    served = f"{loaded.digest[:12]} was loaded and is served: publish a new version instead of changing one"
    try:
        found = repository.read_manifest(loaded.model, loaded.version)
    except InvalidManifest as error:
        if isinstance(error.__cause__, OSError) and not is_unfit(error.__cause__):
            raise
        return f"version {loaded.version} has an invalid manifest on disk ({error}), but {served}"
    if found.digest == loaded.digest:
        return ""
    return f"version {loaded.version} has manifest {found.digest[:12]} on disk, but {served}"
