"""Which versions are served: notices, loads, warms, proves, swaps and drains them while requests flow.

Of every model the version behind the alias `stable` is served by default, else the newest that can be
trusted; versions behind other aliases are served beside it. A version that fails is refused, remembered and
never takes the place of one that works. Knows nothing of images, requests or transports.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.batching import Batcher, BatchPolicy, BatchRun
from serving.bundle import Bundle, Repository
from serving.engine import Engine, warm_and_prove
from serving.errors import (
    BundleError,
    EngineError,
    LenserveError,
    ModelUnavailable,
    ProofFailed,
    UnknownModel,
)
from serving.metrics import Metrics

STABLE_ALIAS = "stable"

Revision = int | str | None  # a version, an alias, or the default

_Fingerprint = tuple[tuple[str, int, int, int], ...]

_log = logging.getLogger(__name__)


class State(StrEnum):
    """Where a version is in its life."""

    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(slots=True, eq=False)
class Version:
    """A loaded version, with its engine and queue."""

    bundle: Bundle
    engine: Engine
    batcher: Batcher
    stack: AsyncExitStack  # closes the batcher
    leases: int = 0
    broken: str = ""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    check: asyncio.Task[None] | None = None  # one at a time, however many requests failed

    @property
    def number(self) -> int:
        """The version's number."""
        return self.bundle.version


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of one model: replaced as a whole, so that a reader never sees half a swap."""

    name: str
    versions: Mapping[int, Version]
    aliases: Mapping[str, int]
    default: int | None
    refused: Mapping[int, str]  # version -> why
    problem: str = ""  # why its folder cannot be read: what was served before goes on

    @property
    def ready(self) -> bool:
        """Whether the default version can answer."""
        return self.default is not None and not self.versions[self.default].broken


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of what an operator wants to know."""

    model: str
    version: int
    state: State
    reason: str = ""
    is_default: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Failure:
    fingerprint: _Fingerprint  # of its files: a version that was mended by hand is tried again
    reason: str


class Models:
    """The loaded versions. `async with` starts watching the repository, and unloads everything at the end."""

    def __init__(
        self,
        repository: Repository,
        load_engine: Callable[[Path], Engine],
        *,
        policy: BatchPolicy,
        warm_sizes: tuple[int, ...],
        metrics: Metrics,
        poll_interval_s: float = 1.0,
    ) -> None:
        self._repository = repository
        self._load_engine = load_engine
        self._policy = policy
        self._warm_sizes = warm_sizes
        self._metrics = metrics
        self._poll_interval_s = poll_interval_s
        self._models: dict[str, Model] = {}
        self._loaded: set[Version] = set()  # served, about to be, or still leased
        self._failures: dict[tuple[str, int], _Failure] = {}
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

    @contextmanager
    def lease(self, name: str, revision: Revision = None) -> Iterator[Version]:
        """Hold a version while it is used: it is not unloaded before the lease ends.

        Raises:
            UnknownModel: the repository has no such model, version or alias.
            ModelUnavailable: it has, but nothing that can answer now.
        """
        version = self._find(name, revision)
        if version.broken:
            raise ModelUnavailable(f"version {version.number} of model {name!r} is broken: {version.broken}")
        version.leases += 1
        version.idle.clear()
        try:
            yield version
        finally:
            version.leases -= 1
            if not version.leases:
                version.idle.set()

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
            for status in _statuses(model)
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
        nothing_works = bool(models) and not served
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
        try:
            await asyncio.to_thread(self._prove, version.bundle, version.engine)
        except (EngineError, ProofFailed) as error:
            if not version.broken:
                version.broken = str(error)
                _log.error("version_broken", extra=_fields(version.bundle, reason=str(error)))
                self._announce()
        except BundleError as error:  # the files went away: that says nothing of the engine
            _log.warning("version_unchecked", extra=_fields(version.bundle, reason=str(error)))

    async def refresh(self) -> None:
        """Look at the repository once, and bring what is served in line with it.

        Raises:
            OSError: the repository cannot be read; everything that is served goes on.
        """
        async with self._refreshing:
            names = await asyncio.to_thread(self._repository.models)
            if not await asyncio.to_thread(self._repository.root.is_dir):
                raise FileNotFoundError(f"the repository {self._repository.root} is no folder")
            for name in names:
                await self._refresh_or_keep(name)
            for name in set(self._models) - set(names):
                gone = self._models.pop(name)
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
            await asyncio.sleep(self._poll_interval_s)

    async def _refresh_model(self, name: str) -> None:
        numbers = await asyncio.to_thread(self._repository.versions, name)
        aliases = await asyncio.to_thread(self._repository.aliases, name)
        old = self._models.get(name, Model(name, {}, {}, None, {}))
        wanted: dict[int, Version] = {}
        default = await self._choose(numbers, aliases, old, wanted)
        refused = {
            number: self._failures[name, number].reason
            for number in sorted({*numbers, *aliases.values()})
            if (name, number) in self._failures
        }
        new = Model(name, wanted, aliases, default, refused)
        if new == old:
            return
        self._models[name] = new
        if default != old.default and default is not None:
            _log.info("version_serving", extra=_fields(wanted[default].bundle))
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
        fingerprint = _fingerprint(self._repository.folder(name, number))
        failure = self._failures.get((name, number))
        if failure is not None and failure.fingerprint == fingerprint:
            return None
        self._loading = (name, number)
        self._announce()
        started_s = time.monotonic()
        try:
            bundle, engine = await asyncio.to_thread(self._read_and_prove, name, number)
        except Exception as error:  # noqa: BLE001 - whatever a version trips over refuses that version alone
            self._failures[name, number] = _Failure(fingerprint, str(error))
            _log.error(
                "version_refused",
                extra={"model": name, "version": number, "reason": str(error)},
                exc_info=not isinstance(error, LenserveError),
            )
            return None
        finally:
            self._loading = None
            self._announce()
        self._failures.pop((name, number), None)
        stack = AsyncExitStack()
        batcher = Batcher(engine.run, self._policy, partial(self._record_run, name, str(number)))
        version = Version(bundle, engine, await stack.enter_async_context(batcher), stack)
        self._loaded.add(version)
        duration_s = time.monotonic() - started_s
        self._metrics.load_duration.labels(name).observe(duration_s)
        _log.info("version_loaded", extra=_fields(bundle, seconds=round(duration_s, 3)))
        return version

    def _read_and_prove(self, name: str, number: int) -> tuple[Bundle, Engine]:
        bundle = self._repository.read(name, number)
        engine = self._load_engine(bundle.model_file)
        self._prove(bundle, engine)
        return bundle, engine

    def _prove(self, bundle: Bundle, engine: Engine) -> None:
        tolerance = bundle.manifest.golden_tolerance
        warm_and_prove(engine, bundle.golden(), tolerance=tolerance, sizes=self._warm_sizes)

    def _record_run(self, name: str, number: str, run: BatchRun) -> None:
        self._metrics.batch_size.labels(name, number).observe(run.images)
        self._metrics.stage_duration.labels(name, number, "infer").observe(run.duration_s)

    def _find(self, name: str, revision: Revision) -> Version:
        model = self.get(name)
        if isinstance(revision, str) and revision not in model.aliases:
            known = ", ".join(sorted(model.aliases)) or "none"
            raise UnknownModel(f"model {name!r} has no alias {revision!r}; known aliases: {known}")
        number = model.aliases[revision] if isinstance(revision, str) else revision
        if number is None:
            number = model.default
        if number is None:
            refused = [f"version {v} was refused: {reason}" for v, reason in model.refused.items()]
            why = model.problem or "; ".join(refused) or "loading"
            raise ModelUnavailable(f"model {name!r} has no version that can answer: {why}")
        if number in model.versions:
            return model.versions[number]
        if number in model.refused:
            raise ModelUnavailable(f"version {number} of model {name!r} was refused: {model.refused[number]}")
        if (name, number) == self._loading:
            raise ModelUnavailable(f"version {number} of model {name!r} is loading")
        served = ", ".join(str(v) for v in sorted(model.versions)) or "none"
        raise UnknownModel(f"version {number} of model {name!r} is not served; served versions: {served}")

    def _retire(self, versions: Iterable[Version]) -> None:
        for version in versions:
            self._start(self._unload(version))

    async def _unload(self, version: Version) -> None:
        while version.leases:
            await version.idle.wait()
        await version.stack.aclose()
        self._loaded.discard(version)
        _log.info("version_unloaded", extra=_fields(version.bundle))

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
            self._metrics.version_state.remove(*labels)
        self._shown = shown
        self._metrics.ready.set(self.ready)
        change, self._change = self._change, asyncio.Event()
        change.set()


def _statuses(model: Model) -> Iterator[VersionStatus]:
    for number, version in model.versions.items():
        aliases = tuple(sorted(alias for alias, target in model.aliases.items() if target == number))
        state = State.BROKEN if version.broken else State.READY
        yield VersionStatus(model.name, number, state, version.broken, number == model.default, aliases)
    for number, reason in model.refused.items():
        yield VersionStatus(model.name, number, State.REFUSED, reason)


def _fingerprint(folder: Path) -> _Fingerprint:
    """What changes when a version is mended: name, ctime, inode and size of every file (chmod mends too)."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, stat.st_ctime_ns, stat.st_ino, stat.st_size) for name, stat in stats)


def _fields(bundle: Bundle, **more: object) -> dict[str, object]:
    return {"model": bundle.model, "version": bundle.version, "digest": bundle.digest[:12], **more}
