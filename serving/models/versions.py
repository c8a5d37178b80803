"""Models and their versions, as values that `Models` creates and the rest of the server reads."""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

from serving.batching.backlog import Backlog
from serving.batching.batcher import Batcher
from serving.bundle import Bundle, Precision
from serving.engine.base import Engine
from serving.errors import ModelUnavailable, UnknownModel
from serving.metrics.recorder import VersionMetrics

Revision = int | str | None  # version number, alias, or None for the default


class State(StrEnum):
    """State of a version, as shown in metrics and Triton's repository index."""

    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ProvenNetwork:
    """The network of a version: loaded, warmed up, and proven by its golden examples."""

    bundle: Bundle
    engine: Engine
    precision: Precision | None  # None: the exported file, FP32
    image_s: float = 0.0  # CPU time of a run with one image, measured once
    sums_to_one: bool = True  # the probabilities of each golden example


@dataclass(slots=True, eq=False)
class Version:
    """A loaded version with its queue. It is not unloaded inside a `with` block."""

    network: ProvenNetwork
    batcher: Batcher
    metrics: VersionMetrics
    stack: AsyncExitStack  # closes the batcher, then the engine
    backlog: Backlog = field(default_factory=Backlog)
    leases: int = 0
    broken: str = ""  # why its engine is broken
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    manifest_seen: tuple[int, int, int] | None = None  # ctime, inode and size of the manifest, when last read
    manifest_change: str = ""  # how it differed then from the one that was loaded
    invalid_outputs: int = 0  # since its engine was proven the last time
    next_proof_s: float = 0.0  # on the clock of time.monotonic(): not before, if outputs are invalid
    check: asyncio.Task[None] | None = None  # serializes checks, even if many requests fail
    bundle: Bundle = field(init=False)
    engine: Engine = field(init=False)
    number: int = field(init=False)
    input_shape: tuple[int, int, int] = field(init=False)  # (height, width, channels)

    def __post_init__(self) -> None:
        """Cache values that every request needs."""
        self.bundle, self.engine = self.network.bundle, self.network.engine
        self.number, self.input_shape = self.bundle.version, self.bundle.manifest.geometry.shape

    def __enter__(self) -> Self:
        """Take a lease.

        Raises:
            ModelUnavailable: the version is broken.
        """
        if self.broken:
            raise ModelUnavailable(
                f"version {self.number} of model {self.bundle.model!r} is broken: {self.broken}"
            )
        self.leases += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leases -= 1
        if not self.leases:
            self.idle.set()

    def log_fields(self, **more: object) -> dict[str, object]:
        """Return log fields that identify this version, and the given ones."""
        bundle = self.bundle
        return {"model": bundle.model, "version": bundle.version, "digest": bundle.digest[:12], **more}

    async def unused(self) -> None:
        """Wait until no request holds a lease."""
        while self.leases:
            self.idle.clear()
            await self.idle.wait()


@dataclass(frozen=True, slots=True)
class Model:
    """One model and its served and refused versions. Replaced as a whole: readers see no half swap."""

    name: str
    versions: Mapping[int, Version] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    default: int | None = None
    refused: Mapping[int, str] = field(default_factory=dict)  # version -> reason
    problem: str = ""  # why its folder cannot be read, or why something else is served than it says

    @property
    def ready(self) -> bool:
        """Whether the default version can answer."""
        return self.default is not None and not self.versions[self.default].broken

    @property
    def why_not_ready(self) -> str:
        """Why the default version cannot answer; empty if it can."""
        if self.default is not None:
            broken = self.versions[self.default].broken
            return f"version {self.default} is broken: {broken}" if broken else ""
        refused = [f"version {number} was refused: {reason}" for number, reason in self.refused.items()]
        return self.problem or "; ".join(refused) or "loading"

    def find(self, revision: Revision, *, loading: Collection[tuple[str, int]] = ()) -> Version:
        """Return a version by number or alias, or the default.

        Args:
            revision: revision of the request.
            loading: the models and versions that are loading now.

        Raises:
            UnknownModel: there is no such version or alias.
            ModelUnavailable: the version exists, but cannot answer now; the message gives the reason.
        """
        if isinstance(revision, str) and revision not in self.aliases:
            known = ", ".join(sorted(self.aliases)) or "none"
            raise UnknownModel(f"model {self.name!r} has no alias {revision!r}; known aliases: {known}")
        number = self.aliases[revision] if isinstance(revision, str) else revision
        if number is None:
            number = self.default
        if number is None:
            raise ModelUnavailable(
                f"model {self.name!r} has no version that can answer: {self.why_not_ready}"
            )
        if number in self.versions:
            return self.versions[number]
        if number in self.refused:
            reason = self.refused[number]
            raise ModelUnavailable(f"version {number} of model {self.name!r} was refused: {reason}")
        if (self.name, number) in loading:
            raise ModelUnavailable(f"version {number} of model {self.name!r} is loading")
        served = ", ".join(str(v) for v in sorted(self.versions)) or "none"
        raise UnknownModel(
            f"version {number} of model {self.name!r} is not served; served versions: {served}; if it is "
            f"published, promote it (`lenserve models promote {self.name}@{number}`), or give it an alias"
        )

    def statuses(self) -> Iterator["VersionStatus"]:
        """Return the state of each version that is served or refused."""
        for number, version in self.versions.items():
            aliases = tuple(sorted(alias for alias, target in self.aliases.items() if target == number))
            state = State.BROKEN if version.broken else State.READY
            yield VersionStatus(self.name, number, state, version.broken, number == self.default, aliases)
        for number, reason in self.refused.items():
            yield VersionStatus(self.name, number, State.REFUSED, reason)


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """The state of one version, for operators."""

    model: str
    version: int
    state: State
    reason: str = ""
    is_default: bool = False
    aliases: tuple[str, ...] = ()
