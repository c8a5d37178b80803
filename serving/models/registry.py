"""The served versions: notices new ones, loads them, swaps them in and drains old ones.

What was loaded is served until its model's folder is removed: an empty folder may be a missing volume.
Requests are answered throughout. Independent of images, requests and transports.

All methods run on the event loop and share one map of models, hence one file.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from serving.errors import LenserveError, ModelUnavailable, UnknownModel
from serving.limited_files import describe_failure
from serving.models.change_watch import ChangeWatch
from serving.models.engine_checks import HUNG_RUN_S, PROOF_PAUSE_S, EngineChecks
from serving.models.folder_threads import FolderThreads
from serving.models.listing import Listing
from serving.models.loader import VersionLoader
from serving.models.loads import Loads
from serving.models.model_refresh import ModelRefresher, why_changed
from serving.models.overlooked import Overlooked
from serving.models.readiness import Readiness
from serving.models.refreshes import Refreshes
from serving.models.state_metrics import StateMetrics
from serving.models.versions import Model, Revision, State, Version, VersionStatus
from serving.models.warm import WarmVersions
from serving.models.watch import watch

# Long enough for the last scrapes of a version, and for rates over five minutes.
KEEP_METRICS_S = 900.0
PATIENCE_S = 30.0
STUCK_S = 5.0
_MAX_NAMED = 5  # models in one message

T = TypeVar("T")

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
        patience_s: float = PATIENCE_S,
        readiness: Readiness | None = None,
        proof_pause_s: float = PROOF_PAUSE_S,
        hung_run_s: float = HUNG_RUN_S,
        stuck_s: float = STUCK_S,
        keep_warm_s: float = 0.0,
        look_interval_s: float | None = None,
        background: Executor | None = None,
    ) -> None:
        """Store the options.

        Args:
            loader: loads versions from a repository.
            poll_interval_s: seconds between two scans of the repository.
            parallel_loads: versions that may load at the same time.
            keep_metrics_s: seconds after which the metrics of an unloaded version are removed.
            patience_s: seconds that other models wait for one whose folder hangs, or whose version loads.
            stuck_s: seconds without progress after which the start waits for no more models.
            readiness: which models must be able to answer.
            hung_run_s: seconds after which a batch that has not ended makes its version broken.
            proof_pause_s: seconds between two proofs of an engine that gives invalid outputs.
            keep_warm_s: seconds that the version before the served one stays loaded; 0: none.
            look_interval_s: seconds between two looks for what was published or promoted; None: scans alone.
            background: threads that load versions after the first scan; None: the same as before.
        """
        self._loader = loader
        self._repository = loader.repository
        self._threads = FolderThreads()
        overlooked = Overlooked(loader.repository)
        self._listing = Listing(loader.repository, overlooked, self._threads, patience_s=patience_s)
        self._refreshes = Refreshes(self._refresh_or_keep, start=self._start, on_overdue=self._show_overdue)
        self._state_metrics = StateMetrics(loader.metrics)
        loader.metrics.ready.labels().set_function(lambda: self.ready)
        loader.metrics.repository_problems.labels().set_function(self._count_problems)
        self._readiness = readiness or Readiness()
        self._checks = EngineChecks(
            loader.why_broken,
            start=self._start,
            on_change=self._announce,
            proof_pause_s=proof_pause_s,
            hung_run_s=hung_run_s,
            patience_s=patience_s,
        )
        self._poll_interval_s = poll_interval_s
        self._look_interval_s = look_interval_s
        self._changes = ChangeWatch(loader.repository, self._threads)
        self._warm = WarmVersions(keep_warm_s, self._retire)
        self._models: dict[str, Model] = {}
        self._unloaded: set[str] = set()  # models that were unloaded on request
        self._loads = Loads(
            loader.load,
            parallel=parallel_loads,
            patience_s=patience_s,
            start=self._start,
            on_change=self._announce,
            on_late=self._use_late,
            background=background,
        )
        self._refresher = ModelRefresher(loader, self._load, overlooked, self._threads, self._loads.running)
        self._patience_s = patience_s
        self._stuck_s = min(stuck_s, patience_s)
        self._keep_metrics_s = keep_metrics_s
        self._scanned = asyncio.Event()
        self.unreadable = ""  # why the repository could not be read the last time
        self._draining = False
        self._refresh_lock = asyncio.Lock()
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._start(watch(self._scan, self._poll_interval_s, self._after_refresh))
        self._start(self._checks.watch_runs(self._loads.loaded))
        if self._look_interval_s is not None and self._look_interval_s < self._poll_interval_s:
            self._start(watch(self._follow_changes, self._look_interval_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._threads.close()
        self._loads.close()
        self._warm.clear()
        for version in self._loads.loaded:
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
        return self.get(name).find(revision, loading=self._loads.running)

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
        if any(loading == name for loading, _ in self._loads.running):
            raise ModelUnavailable(f"model {name!r} is loading")
        raise UnknownModel(f"there is no model {name!r}", known=tuple(sorted(self._models)))

    def names(self) -> list[str]:
        """Names of all known models, sorted."""
        return sorted(self._models)

    def statuses(self) -> list[VersionStatus]:
        """Return the status of each known version, sorted by model and number."""
        known = [status for name in self._models for status in self._statuses(name)]
        first = [(name, number) for name, number in self._loads.running if name not in self._models]
        loading = [VersionStatus(name, number, State.LOADING) for name, number in first]
        return sorted(known + loading, key=lambda status: (status.model, status.version))

    def _statuses(self, name: str) -> list[VersionStatus]:
        """Return the status of each known version of one model."""
        loading = [each for each in self._loads.running if each[0] == name]
        model = self._models.get(name, Model(name))
        known = [each for each in model.statuses() if (name, each.version) not in loading]
        return known + [VersionStatus(name, number, State.LOADING) for _, number in loading]

    @property
    def ready(self) -> bool:
        """Whether the server can answer requests; see `why_not_ready`."""
        return not self.why_not_ready

    @property
    def why_not_ready(self) -> str:
        """Why the server is not ready; empty if it is. Any thread may read this.

        It is ready once the repository has been read, while the models that count can answer and the server
        is not stopping. Loading a new version does not change this.
        """
        if self._draining:
            return "the server is stopping"
        if not self._scanned.is_set():
            return _describe_start(self._refreshes.names())
        if self.unreadable and not self._models:
            return f"the repository cannot be read: {self.unreadable}"
        models = dict(self._models)  # a copy: probes read it from another thread
        loading = {name for name, _ in tuple(self._loads.running)}
        return self._readiness.problem(models, unloaded=tuple(self._unloaded), loading=loading)

    @property
    def broken(self) -> bool:
        """Whether an engine is broken. Only a new process repairs that."""
        return bool(self.why_broken)

    @property
    def why_broken(self) -> str:
        """Which engines are broken, and why; empty if none is. Any thread may read this."""
        models = list(self._models.values())
        broken = [version for model in models for version in model.versions.values() if version.broken]
        return "; ".join(
            f"version {each.number} of model {each.bundle.model!r} is broken: {each.broken}"
            for each in broken
        )

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of a model or of readiness. Get it before reading states, then wait."""
        return self._change

    def wake_watchers(self) -> None:
        """Let those who wait for `change` look again: tokens, for example, have changed what they may see."""
        self._announce()

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
        await self._checks.check(version)

    def note_invalid_output(self, version: Version) -> None:
        """Count an output that cannot be right; after a few, prove the engine again."""
        self._checks.note_invalid_output(version)

    async def load(self, name: str) -> None:
        """Refresh one model now, even if it is unloaded or its versions are refused.

        Raises:
            UnknownModel: the repository has no such model.
            ModelUnavailable: the model or its newest version cannot be served. Versions that are served stay.
            OSError: the repository cannot be read.
        """
        # In a separate task: if the caller's were cancelled half-way, it would lose track of loaded versions.
        reload = self._start(self._reload(name))
        try:
            await asyncio.wait([reload])
        except asyncio.CancelledError:
            reload.add_done_callback(partial(_log_failure, name))
            raise
        reload.result()

    async def _reload(self, name: str) -> None:
        if not await self._threads.run(partial(self._repository.has_model, name)):
            raise UnknownModel(f"failed to load {name!r}: the repository has no such model")
        await self._refreshes.until_ended(name)
        self._unloaded.discard(name)
        self._loader.forget(name)
        await asyncio.wait([self._refreshes.begin(name)])
        model = self.get(name)
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
        model = self.get(name)
        self._unloaded.add(name)  # a refresh that runs now has no effect: it is not waited for, and may hang
        self._models[name] = Model(name, problem="it was unloaded on request")
        self._announce(name)
        self._warm.drop(name)
        self._retire_late(name, self._loads.late(name))
        self._retire(model.versions.values())

    async def refresh(self) -> None:
        """Read the repository once, load new versions, and unload removed ones.

        Waits for models that are slow, but not for ever.

        Raises:
            OSError: the repository cannot be read. Versions that are served stay.
        """
        await self._begin_refresh()
        await self._refreshes.wait(timeout_s=self._patience_s)
        await self._listing.until_looked()
        self._note_overdue(self._patience_s)

    async def _scan(self) -> None:
        """Begin to refresh. Only the first scan waits: later, no model delays the others."""
        await self._begin_refresh()
        if self._scanned.is_set():
            self._note_overdue(self._patience_s)
            return
        why = f"has made no progress for {self._stuck_s:g} s"
        await self._refreshes.wait_while_useful(
            stuck_s=self._stuck_s,
            patience_s=self._patience_s,
            give_up=lambda: self._loads.leave_places(why),
        )
        self._note_overdue(self._stuck_s)

    def _note_overdue(self, limit_s: float) -> None:
        self._refreshes.note_overdue(limit_s=limit_s, loading={name for name, _ in self._loads.running})

    def _show_overdue(self, name: str, reason: str) -> None:
        """Let a model be known whose folder hangs since the start."""
        if name not in self._models:
            self._models[name] = Model(name, problem=reason)
            self._announce(name)

    async def _begin_refresh(self) -> None:
        """Read the names of all models, start to refresh each, and unload those that were removed."""
        async with self._refresh_lock:
            serves = any(model.versions for model in self._models.values())
            names = await self._listing.names(serves=serves)
            for name in names:
                if name not in self._unloaded and name not in self._refreshes:
                    self._refreshes.begin(name)
            for name in set(self._models).difference(names):
                if name not in self._refreshes:
                    self._remove(name)

    def _remove(self, name: str) -> None:
        """Unload a model that the repository no longer has, if it is known."""
        gone = self._models.pop(name, None)
        if gone is None:
            return
        self._unloaded.discard(name)
        if not gone.versions:  # nothing is unloaded, after which its metrics would be forgotten
            self._loader.metrics.load_failures.remove_all(("model",), (name,))
        self._announce(name)
        self._warm.drop(name)
        self._retire_late(name, self._loads.late(name))
        self._loader.forget(name)
        self._retire(gone.versions.values())

    async def _follow_changes(self) -> None:
        """Refresh the models in which something was published or promoted, before the next scan."""
        for name in await self._changes.changed(self.names()):
            if name in self._refreshes:  # which may have read the folder before the change
                self._changes.look_again(name)
            elif self._changes.found_nothing(name):
                await self._begin_refresh()  # another model of that name may come before the next scan
            elif name in self._models and name not in self._unloaded:
                self._refreshes.begin(name)

    async def _refresh_or_keep(self, name: str) -> None:
        """Refresh a model; if it cannot be read, keep its versions and continue with the other models."""
        try:
            await self._refresh_model(name)
        except Exception as error:  # noqa: BLE001 - it costs this model only
            reason = describe_failure(error)
            model = replace(self._models.get(name, Model(name)), problem=reason)
            if model != self._models.get(name) and name not in self._unloaded:
                self._models[name] = model
                _log.error(
                    "model_unreadable",
                    extra={"model": name, "reason": reason},
                    exc_info=not isinstance(error, OSError | LenserveError),
                )
                self._announce(name)

    def _count_problems(self) -> int:
        """Count what cannot be read, hangs, or cannot be followed. Any thread may call this."""
        models = list(self._models.values())
        wrong = {model.name for model in models if model.problem and model.name not in self._unloaded}
        late = {name for name, _ in tuple(self._loads.overdue)}
        return bool(self.unreadable) + len(wrong | set(self._refreshes.overdue) | late)

    def _after_refresh(self, problem: str) -> None:
        if not self._scanned.is_set() or self.unreadable != problem:
            self.unreadable = problem
            self._scanned.set()
            self._loads.go_to_background()
            self._announce()

    async def _refresh_model(self, name: str) -> None:
        old, late = self._models.get(name, Model(name)), self._loads.late(name)
        new = await self._refresher.refresh(old)
        self._retire_late(name, late)
        if name in self._unloaded:
            new_versions = new.versions.values() if new is not None else ()
            self._retire(version for version in new_versions if version not in old.versions.values())
            return
        if new is None:
            self._remove(name)
        if new is None or new == self._models.get(name):
            return
        self._models[name] = new
        if new.problem and new.problem != old.problem:
            served = {} if new.default is None else {"served_version": new.default}
            _log.error("model_problem", extra={"model": name, "reason": new.problem, **served})
        if new.default != old.default and new.default is not None:
            _log.info("version_serving", extra=new.versions[new.default].log_fields())
        self._announce(name)
        kept = new.versions.values()
        for version in old.versions.values():
            if version not in kept:
                self._warm.keep(version) if version.number == old.default else self._retire([version])

    async def _load(self, name: str, number: int) -> Version | None:
        """Return a version to be served; None if it cannot be loaded, or not yet."""
        if (late := self._loads.take_late(name, number)) is not None:
            return late
        if (name, number) in self._loads.running or not await self._may_load(name, number):
            return None
        if (warm := self._warm.take(name, number)) is not None:
            if not await self._threads.run(partial(why_changed, self._repository, warm)):
                return warm
            self._retire([warm])  # its number names other files now: they were replaced, such as by a backup
        self._warm.drop(name)
        return await self._loads.load(name, number)

    def _use_late(self, name: str) -> None:
        """Refresh a model of which a version has loaded too late, so that it is served or retired."""
        if name in self._unloaded:
            self._retire_late(name, self._loads.late(name))
        elif name not in self._refreshes:
            self._refreshes.begin(name)

    def _retire_late(self, name: str, numbers: Iterable[int]) -> None:
        """Retire those of these versions that have loaded too late and are not served."""
        self._retire(filter(None, [self._loads.take_late(name, number) for number in numbers]))

    async def _may_load(self, name: str, number: int) -> bool:
        if not self._loader.has_failed(name, number):
            return True
        return await self._threads.run(partial(self._loader.may_load, name, number))

    def _retire(self, versions: Iterable[Version]) -> None:
        for version in versions:
            self._start(self._unload(version))

    async def _unload(self, version: Version) -> None:
        await version.unused()
        await version.stack.aclose()
        self._loads.loaded.discard(version)
        _log.info("version_unloaded", extra=version.log_fields())
        bundle = version.bundle
        asyncio.get_running_loop().call_later(
            self._keep_metrics_s, self._forget, bundle.model, bundle.version
        )

    def _forget(self, name: str, number: int) -> None:
        """Remove the metrics of an unloaded version unless it has been loaded again."""
        loaded = any((each.bundle.model, each.number) == (name, number) for each in self._loads.loaded)
        if not loaded and (name, number) not in self._loads.running:
            self._loader.metrics.forget(name, number)

    def _start(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _announce(self, name: str | None = None) -> None:
        """Report a change of one model, or of readiness only."""
        if name is not None:
            self._state_metrics.show(name, self._models.get(name), self._statuses(name))
        change, self._change = self._change, asyncio.Event()
        change.set()


def _describe_start(names: Sequence[str]) -> str:
    """Say what the first scan waits for."""
    if not names:
        return "the repository has not been read yet"
    more = f", and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"models are not loaded yet: {', '.join(names[:_MAX_NAMED])}{more}"


def _log_failure(name: str, reload: asyncio.Task[None]) -> None:
    """Log the failure of a load whose caller was cancelled."""
    error = None if reload.cancelled() else reload.exception()
    if error is not None:
        _log.warning(
            "load_failed",
            extra={"model": name, "reason": str(error)},
            exc_info=None if isinstance(error, (OSError, LenserveError)) else error,
        )
