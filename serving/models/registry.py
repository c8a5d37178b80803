"""Which versions are served: notices, loads, warms, proves, swaps and drains them while requests flow.

Of every model the version behind the alias `stable` is served by default, else the newest that can be
trusted; versions behind other aliases are served beside it. A version that fails is refused, remembered and
never takes the place of one that works. Knows nothing of images, requests or transports.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from serving.errors import LenserveError, ModelUnavailable, UnknownModel
from serving.models.loader import VersionLoader
from serving.models.versions import STABLE_ALIAS, Model, Revision, State, Version, VersionStatus

_log = logging.getLogger(__name__)


class Models:
    """The loaded versions. `async with` starts watching the repository, and unloads everything at the end."""

    def __init__(self, loader: VersionLoader, *, poll_interval_s: float = 1.0) -> None:
        self._loader = loader
        self._repository = loader.repository
        self._metrics = loader.metrics
        self._poll_interval_s = poll_interval_s
        self._models: dict[str, Model] = {}
        self._loaded: set[Version] = set()  # served, about to be, or still leased
        self._put_away: set[str] = set()  # unloaded on request, until they are loaded again
        self._loading: tuple[str, int] | None = None
        self._scanned = asyncio.Event()
        self._draining = False
        self._repository_problem = ""
        self._refreshing = asyncio.Lock()
        self._shown: set[tuple[str, str, str]] = set()  # labels of metrics.version_state
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._start(self._watch())
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

    # What others ask

    def lease(self, name: str, revision: Revision = None) -> Version:
        """The version that answers, to be held in a `with`.

        Raises:
            UnknownModel: the repository has no such model, version or alias.
            ModelUnavailable: it has, but nothing that can answer now.
        """
        model = self._models.get(name)
        if revision is None and model is not None and model.default is not None:
            return model.versions[model.default]
        return self.get(name).find(revision, loading=self._loading)

    def get(self, name: str) -> Model:
        """What is known of a model.

        Raises:
            UnknownModel: the repository has no such model.
            ModelUnavailable: the repository has not been read yet.
        """
        model = self._models.get(name)
        if model is not None:
            return model
        if not self._scanned.is_set():
            raise ModelUnavailable(f"model {name!r} is not loaded yet: the server is starting")
        if self._loading is not None and self._loading[0] == name:
            raise ModelUnavailable(f"model {name!r} is loading")
        raise UnknownModel(
            f"there is no model {name!r}; known models: {', '.join(sorted(self._models)) or 'none'}"
        )

    def names(self) -> list[str]:
        """Known models, sorted."""
        return sorted(self._models)

    def statuses(self) -> list[VersionStatus]:
        """Every known version, sorted by model and number."""
        statuses = [
            status
            for model in self._models.values()
            for status in model.statuses()
            if (status.model, status.version) != self._loading  # refused before, and tried again
        ]
        if self._loading is not None:
            statuses.append(VersionStatus(*self._loading, State.LOADING))
        return sorted(statuses, key=lambda status: (status.model, status.version))

    @property
    def ready(self) -> bool:
        """Whether requests are welcome. A background load changes nothing.

        The first look at the repository is over, every model that is served can answer, and the server is
        not stopping. An empty repository is welcome; one in which nothing can be served is not.
        """
        models = list(self._models.values())  # a copy: probes look from a thread of their own
        served = [model for model in models if model.default is not None]
        nothing_works = not served and any(model.name not in self._put_away for model in models)
        return (
            self._scanned.is_set()
            and not self._draining
            and not nothing_works
            and all(m.ready for m in served)
        )

    @property
    def broken(self) -> bool:
        """Whether an engine stopped working for good: only a new process can mend that."""
        models = list(self._models.values())  # a copy: probes look from a thread of their own
        return any(version.broken for model in models for version in model.versions.values())

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining

    @property
    def change(self) -> asyncio.Event:
        """Set at the next change of any model or of readiness. Take it before looking, then wait for it."""
        return self._change

    async def scanned(self) -> None:
        """Wait until the repository has been read for the first time."""
        await self._scanned.wait()

    # What happens

    def drain(self) -> None:
        """Stop being ready, and go on serving."""
        self._draining = True
        self._announce()

    async def check_engine(self, version: Version) -> None:
        """After an engine failed on good input: let it prove itself again, and give it up if it cannot."""
        if version.check is None or version.check.done():
            version.check = self._start(self._check(version))
        await asyncio.wait([version.check])

    async def _check(self, version: Version) -> None:
        reason = await self._loader.why_broken(version)
        if reason and not version.broken:
            version.broken = reason
            _log.error("version_broken", extra=version.log_fields(reason=reason))
            self._announce()

    async def load(self, name: str) -> None:
        """Look at one model now, whatever was decided of it before, and bring what is served in line.

        Raises:
            UnknownModel: the repository has no such model.
            ModelUnavailable: it, or its newest version, cannot be served; what was served before goes on.
            OSError: the repository cannot be read.
        """
        await self._refreshing.acquire()
        # Not in the caller's task: one that is cancelled half-way would forget what it has loaded.
        look = self._start(self._look_again(name))
        look.add_done_callback(lambda _: self._refreshing.release())
        try:
            await asyncio.wait([look])
        except asyncio.CancelledError:
            look.add_done_callback(partial(_log_failure, name))
            raise
        look.result()

    async def _look_again(self, name: str) -> None:
        if name not in await asyncio.to_thread(self._repository.models):
            raise UnknownModel(f"failed to load {name!r}: the repository has no such model")
        self._put_away.discard(name)
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
        """Serve a model no more, until it is loaded again. Requests that hold it end first.

        Raises:
            UnknownModel, ModelUnavailable: as `get`.
        """
        async with self._refreshing:
            model = self.get(name)
            self._put_away.add(name)
            self._models[name] = Model(name, {}, {}, None, {}, problem="it was unloaded on request")
            self._announce()
            self._retire(model.versions.values())

    async def refresh(self) -> None:
        """Look at the repository once, and bring what is served in line with it.

        Raises:
            OSError: the repository cannot be read; everything that is served goes on.
        """
        async with self._refreshing:
            names = await asyncio.to_thread(self._repository.models)
            if not await asyncio.to_thread(self._repository.root.is_dir):
                raise FileNotFoundError(f"the repository {self._repository.root} is not a directory")
            for name in names:
                if name not in self._put_away:
                    await self._refresh_or_keep(name)
            for name in set(self._models) - set(names):
                gone = self._models.pop(name)
                self._put_away.discard(name)
                self._announce()
                self._retire(gone.versions.values())

    async def _refresh_or_keep(self, name: str) -> None:
        """One model that cannot be read must not hold up the others."""
        try:
            await self._refresh_model(name)
        except (OSError, LenserveError) as error:
            model = replace(self._models.get(name, Model(name, {}, {}, None, {})), problem=str(error))
            if model != self._models.get(name):
                self._models[name] = model
                _log.error("model_unreadable", extra={"model": name, "reason": str(error)})
                self._announce()

    async def _watch(self) -> None:
        while True:
            try:
                await self.refresh()
                problem = ""
            except Exception as error:  # noqa: BLE001 - whatever stumbles, what is served goes on and the next look may do
                problem = str(error)
                if problem != self._repository_problem:
                    _log.warning(
                        "repository_unreadable",
                        extra={"reason": problem},
                        exc_info=not isinstance(error, OSError),
                    )
            self._repository_problem = problem
            if not self._scanned.is_set():
                self._scanned.set()
                self._announce()
            # At multiples of the clock that all processes share: a new version reaches every worker at once.
            await asyncio.sleep(self._poll_interval_s - time.monotonic() % self._poll_interval_s)

    async def _refresh_model(self, name: str) -> None:
        numbers = await asyncio.to_thread(self._repository.versions, name)
        aliases = await asyncio.to_thread(self._repository.aliases, name)
        old = self._models.get(name, Model(name, {}, {}, None, {}))
        wanted: dict[int, Version] = {}
        default = await self._choose(numbers, aliases, old, wanted)
        refused = self._loader.refused(name, (*numbers, *aliases.values()))
        new = Model(name, wanted, aliases, default, refused)
        if new == old:
            return
        self._models[name] = new
        if default != old.default and default is not None:
            _log.info("version_serving", extra=wanted[default].log_fields())
        self._announce()
        self._retire(version for number, version in old.versions.items() if wanted.get(number) is not version)

    async def _choose(
        self, numbers: list[int], aliases: Mapping[str, int], old: Model, wanted: dict[int, Version]
    ) -> int | None:
        """Fill `wanted` with every version to serve, loading what is new, and return the default's number."""
        stable = aliases.get(STABLE_ALIAS)
        preferred = [stable] if stable is not None else sorted(numbers, reverse=True)
        default = await self._first_that_works(preferred, old, wanted)
        for number in sorted(set(aliases.values()) - set(wanted)):
            await self._first_that_works([number], old, wanted)
        if default is None and old.default is not None:
            default = old.default
            wanted[default] = old.versions[default]
        return default

    async def _first_that_works(
        self, numbers: list[int], old: Model, wanted: dict[int, Version]
    ) -> int | None:
        """Add the first version that is loaded or can be loaded to `wanted`, and return its number."""
        for number in numbers:
            version = old.versions.get(number) or await self._load(old.name, number)
            if version is not None:
                wanted[number] = version
                return number
        return None

    async def _load(self, name: str, number: int) -> Version | None:
        if not self._loader.may_load(name, number):
            return None
        self._loading = (name, number)
        self._announce()
        try:
            version = await self._loader.load(name, number)
        finally:
            self._loading = None
            self._announce()
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

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _announce(self) -> None:
        shown = {(status.model, str(status.version), str(status.state)) for status in self.statuses()}
        for labels in shown:
            self._metrics.version_state.labels(*labels).set(1)
        for labels in self._shown - shown:  # not clear(): a scrape in between would see nothing
            self._metrics.forget_state(*labels)
        self._shown = shown
        self._metrics.ready.set(self.ready)
        change, self._change = self._change, asyncio.Event()
        change.set()


def _log_failure(name: str, look: asyncio.Task[None]) -> None:
    """Say in the log what the caller did not wait for."""
    error = None if look.cancelled() else look.exception()
    if error is not None:
        _log.warning(
            "load_failed",
            extra={"model": name, "reason": str(error)},
            exc_info=None if isinstance(error, (OSError, LenserveError)) else error,
        )
