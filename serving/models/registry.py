"""Decides which versions are served: notices new ones, loads them, swaps them in and drains old ones.

The default version of a model is the target of the alias `stable`, or else the newest that loads. The targets
of other aliases are also served. A version that fails to load is refused and never replaces one that works.
Requests are answered throughout. Independent of images, requests and transports.

All methods run on the event loop and share one map of models, hence one file.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from serving.errors import LenserveError, ModelUnavailable, UnknownModel
from serving.models.loader import VersionLoader
from serving.models.state_metrics import StateMetrics
from serving.models.versions import STABLE_ALIAS, Model, Revision, State, Version, VersionStatus
from serving.models.watch import watch

# Long enough for the last scrapes of a version, and for rates over five minutes.
KEEP_METRICS_S = 900.0

_log = logging.getLogger(__name__)


class Models:
    """The served versions. `async with` starts watching the repository, and unloads everything at the end."""

    def __init__(
        self,
        loader: VersionLoader,
        *,
        poll_interval_s: float = 1.0,
        parallel_loads: int = 1,
        keep_metrics_s: float = KEEP_METRICS_S,
    ) -> None:
        """Store the options.

        Args:
            loader: loads versions from a repository.
            poll_interval_s: seconds between two scans of the repository.
            parallel_loads: versions that may load at the same time.
            keep_metrics_s: seconds after which the metrics of an unloaded version are removed.
        """
        self._loader = loader
        self._repository = loader.repository
        self._state_metrics = StateMetrics(loader.metrics)
        loader.metrics.ready.labels().set_function(lambda: self.ready)
        self._poll_interval_s = poll_interval_s
        self._models: dict[str, Model] = {}
        self._loaded: set[Version] = set()  # served, about to be served, or still leased
        self._unloaded: set[str] = set()  # models that were unloaded on request
        self._loading: set[tuple[str, int]] = set()
        self._keep_metrics_s = keep_metrics_s
        self._load_slots = asyncio.Semaphore(parallel_loads)
        self._scanned = asyncio.Event()
        self._draining = False
        self._refresh_lock = asyncio.Lock()
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._start(watch(self.refresh, self._poll_interval_s, self._after_refresh))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for version in self._loaded:
            await version.stack.aclose()

    # The served versions.

    def lease(self, name: str, revision: Revision = None) -> Version:
        """Return the version for a request, to be used in a `with` block.

        Raises:
            UnknownModel: the repository has no such model, version or alias.
            ModelUnavailable: the version exists, but cannot answer now.
        """
        model = self._models.get(name)
        if revision is None and model is not None and model.default is not None:
            return model.versions[model.default]
        return self.get(name).find(revision, loading=self._loading)

    def get(self, name: str) -> Model:
        """Return a model with its served and refused versions.

        Raises:
            UnknownModel: the repository has no such model.
            ModelUnavailable: the repository has not been read yet.
        """
        model = self._models.get(name)
        if model is not None:
            return model
        if not self._scanned.is_set():
            raise ModelUnavailable(f"model {name!r} is not loaded yet: the server is starting")
        if any(loading == name for loading, _ in self._loading):
            raise ModelUnavailable(f"model {name!r} is loading")
        raise UnknownModel(f"there is no model {name!r}", known=tuple(sorted(self._models)))

    def names(self) -> list[str]:
        """Names of all known models, sorted."""
        return sorted(self._models)

    def statuses(self) -> list[VersionStatus]:
        """Return the status of each known version, sorted by model and number."""
        known = [status for name in self._models for status in self._statuses(name)]
        first = [(name, number) for name, number in self._loading if name not in self._models]
        loading = [VersionStatus(name, number, State.LOADING) for name, number in first]
        return sorted(known + loading, key=lambda status: (status.model, status.version))

    def _statuses(self, name: str) -> list[VersionStatus]:
        """Return the status of each known version of one model."""
        loading = [each for each in self._loading if each[0] == name]
        model = self._models.get(name, Model(name))
        known = [each for each in model.statuses() if (name, each.version) not in loading]
        return known + [VersionStatus(name, number, State.LOADING) for _, number in loading]

    @property
    def ready(self) -> bool:
        """Whether the server can answer requests. Loading a new version does not change this.

        True once the repository has been read, while every served model can answer and the server is not
        stopping. A server with an empty repository is ready; a server that cannot serve any of its models is
        not.
        """
        models = list(self._models.values())  # a copy: probes read it from another thread
        served = [model for model in models if model.default is not None]
        nothing_works = not served and any(model.name not in self._unloaded for model in models)
        return (
            self._scanned.is_set()
            and not self._draining
            and not nothing_works
            and all(m.ready for m in served)
        )

    @property
    def broken(self) -> bool:
        """Whether an engine is broken. Only a new process repairs that."""
        models = list(self._models.values())  # a copy: probes read it from another thread
        return any(version.broken for model in models for version in model.versions.values())

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of a model or of readiness. Get it before reading states, then wait."""
        return self._change

    async def scanned(self) -> None:
        """Wait until the repository has been read for the first time."""
        await self._scanned.wait()

    # Changes of the served versions.

    def drain(self) -> None:
        """Become not ready, but continue to serve."""
        self._draining = True
        self._announce()

    async def check_engine(self, version: Version) -> None:
        """Prove an engine again after it failed on valid input; mark its version broken if that fails."""
        if version.check is None or version.check.done():
            version.check = self._start(self._check(version))
        await asyncio.wait([version.check])

    async def _check(self, version: Version) -> None:
        reason = await self._loader.why_broken(version)
        if reason and not version.broken:
            version.broken = reason
            _log.error("version_broken", extra=version.log_fields(reason=reason))
            self._announce(version.bundle.model)

    async def load(self, name: str) -> None:
        """Refresh one model now, even if it is unloaded or its versions are refused.

        Raises:
            UnknownModel: the repository has no such model.
            ModelUnavailable: the model or its newest version cannot be served. Versions that are served stay.
            OSError: the repository cannot be read.
        """
        await self._refresh_lock.acquire()
        # In a separate task: if the caller's were cancelled half-way, it would lose track of loaded versions.
        reload = self._start(self._reload(name))
        reload.add_done_callback(lambda _: self._refresh_lock.release())
        try:
            await asyncio.wait([reload])
        except asyncio.CancelledError:
            reload.add_done_callback(partial(_log_failure, name))
            raise
        reload.result()

    async def _reload(self, name: str) -> None:
        if name not in await asyncio.to_thread(self._repository.models):
            raise UnknownModel(f"failed to load {name!r}: the repository has no such model")
        self._unloaded.discard(name)
        self._loader.forget(name)
        await self._refresh_or_keep(name)
        model = self._models[name]
        newest = max(model.refused, default=0)
        if model.problem or model.default is None or newest > model.default:
            refused = (
                f"version {newest} was refused: {model.refused[newest]}" if newest else "it has no version"
            )
            raise ModelUnavailable(f"failed to load {name!r}: {model.problem or refused}")

    async def unload(self, name: str) -> None:
        """Stop serving a model until `load`. Running requests are answered first.

        Raises:
            UnknownModel, ModelUnavailable: as `get`.
        """
        async with self._refresh_lock:
            model = self.get(name)
            self._unloaded.add(name)
            self._models[name] = Model(name, problem="it was unloaded on request")
            self._announce(name)
            self._retire(model.versions.values())

    async def refresh(self) -> None:
        """Read the repository once, load new versions, and unload removed ones.

        Raises:
            OSError: the repository cannot be read. Versions that are served stay.
        """
        async with self._refresh_lock:
            names = await asyncio.to_thread(self._repository.models)
            if not await asyncio.to_thread(self._repository.root.is_dir):
                raise FileNotFoundError(f"the repository {self._repository.root} is not a directory")
            refreshes = (self._refresh_or_keep(name) for name in names if name not in self._unloaded)
            results = await asyncio.gather(*refreshes, return_exceptions=True)
            for name in set(self._models) - set(names):
                gone = self._models.pop(name)
                self._unloaded.discard(name)
                self._announce(name)
                self._retire(gone.versions.values())
            for error in filter(None, results):
                raise error

    async def _refresh_or_keep(self, name: str) -> None:
        """Refresh a model; if it cannot be read, keep its versions and continue with the other models."""
        try:
            await self._refresh_model(name)
        except (OSError, LenserveError) as error:
            model = replace(self._models.get(name, Model(name)), problem=str(error))
            if model != self._models.get(name):
                self._models[name] = model
                _log.error("model_unreadable", extra={"model": name, "reason": str(error)})
                self._announce(name)

    def _after_refresh(self) -> None:
        if not self._scanned.is_set():
            self._scanned.set()
            self._announce()

    async def _refresh_model(self, name: str) -> None:
        numbers = await asyncio.to_thread(self._repository.versions, name)
        aliases = await asyncio.to_thread(self._repository.aliases, name)
        old = self._models.get(name, Model(name))
        wanted: dict[int, Version] = {}
        default = await self._choose(numbers, aliases, old, wanted)
        refused = self._loader.refused(name, (*numbers, *aliases.values()))
        new = Model(name, wanted, aliases, default, refused)
        if new == old:
            return
        self._models[name] = new
        if default != old.default and default is not None:
            _log.info("version_serving", extra=wanted[default].log_fields())
        self._announce(name)
        self._retire(version for number, version in old.versions.items() if wanted.get(number) is not version)

    async def _choose(
        self, numbers: list[int], aliases: Mapping[str, int], old: Model, wanted: dict[int, Version]
    ) -> int | None:
        """Fill `wanted` with all versions to serve, load new ones, and return the number of the default."""
        stable = aliases.get(STABLE_ALIAS)
        preferred = [stable] if stable is not None else sorted(numbers, reverse=True)
        default = await self._first_loadable(preferred, old, wanted)
        for number in sorted(set(aliases.values()) - set(wanted)):
            await self._first_loadable([number], old, wanted)
        if default is None and old.default is not None:
            default = old.default
            wanted[default] = old.versions[default]
        return default

    async def _first_loadable(self, numbers: list[int], old: Model, wanted: dict[int, Version]) -> int | None:
        """Add the first version that is loaded or loads now to `wanted`, and return its number."""
        for number in numbers:
            version = old.versions.get(number) or await self._load(old.name, number)
            if version is not None:
                wanted[number] = version
                return number
        return None

    async def _load(self, name: str, number: int) -> Version | None:
        if not self._loader.may_load(name, number):
            return None
        async with self._load_slots:
            self._loading.add((name, number))
            self._announce(name)
            try:
                version = await self._loader.load(name, number)
            finally:
                self._loading.discard((name, number))
                self._announce(name)
        if version is not None:
            self._loaded.add(version)
        return version

    def _retire(self, versions: Iterable[Version]) -> None:
        for version in versions:
            self._start(self._unload(version))

    async def _unload(self, version: Version) -> None:
        await version.unused()
        await version.stack.aclose()
        self._loaded.discard(version)
        _log.info("version_unloaded", extra=version.log_fields())
        bundle = version.bundle
        asyncio.get_running_loop().call_later(
            self._keep_metrics_s, self._forget, bundle.model, bundle.version
        )

    def _forget(self, name: str, number: int) -> None:
        """Remove the metrics of an unloaded version unless it has been loaded again."""
        loaded = any((each.bundle.model, each.number) == (name, number) for each in self._loaded)
        if not loaded and (name, number) not in self._loading:
            self._loader.metrics.forget(name, number)

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _announce(self, name: str | None = None) -> None:
        """Report a change of one model, or of readiness only."""
        if name is not None:
            self._state_metrics.show(name, self._statuses(name))
        change, self._change = self._change, asyncio.Event()
        change.set()


def _log_failure(name: str, reload: asyncio.Task[None]) -> None:
    """Log the failure of a load whose caller was cancelled."""
    error = None if reload.cancelled() else reload.exception()
    if error is not None:
        _log.warning(
            "load_failed",
            extra={"model": name, "reason": str(error)},
            exc_info=None if isinstance(error, (OSError, LenserveError)) else error,
        )
