"""A number becomes a version with its queue; one that fails is remembered until its files change."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from serving.batching.batcher import Batcher, BatchRun
from serving.batching.policy import BatchPolicy
from serving.bundle import Bundle, Precision, Repository
from serving.engine.base import Engine
from serving.engine.onnx import close
from serving.errors import LenserveError
from serving.metrics.recorder import Metrics, VersionMetrics
from serving.models.loading import load_version, prove
from serving.models.versions import Version

_Fingerprint = tuple[tuple[str, int, int, int], ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    fingerprint: _Fingerprint  # of its files: a version that was mended by hand is tried again
    reason: str


class VersionLoader:
    """Loads versions of a repository. A class because it remembers what failed, so as not to try it again."""

    def __init__(
        self,
        repository: Repository,
        load_engine: Callable[[Path], Engine],
        *,
        policy: BatchPolicy,
        warm_sizes: tuple[int, ...],
        metrics: Metrics,
        precision: Precision | None = None,
    ) -> None:
        """Store how.

        Args:
            repository: of the versions.
            load_engine: from the file of a network.
            policy: of every queue.
            warm_sizes: batches that are run before any request is.
            metrics: for what each version does.
            precision: the variant to take where a version has it.
        """
        self.repository = repository
        self.metrics = metrics
        self._load_engine = load_engine
        self._policy = policy
        self._warm_sizes = warm_sizes
        self._precision = precision
        self._failures: dict[tuple[str, int], _Failure] = {}

    def refused(self, name: str, numbers: Iterable[int]) -> dict[int, str]:
        """Which of these versions failed, and why."""
        failures = ((number, self._failures.get((name, number))) for number in sorted(set(numbers)))
        return {number: failure.reason for number, failure in failures if failure is not None}

    def forget(self, name: str) -> None:
        """Try all versions of a model again."""
        for failed in [each for each in self._failures if each[0] == name]:
            del self._failures[failed]

    def is_worth_a_try(self, name: str, number: int) -> bool:
        """Whether a version has not failed yet, or its files have changed since."""
        failure = self._failures.get((name, number))
        return failure is None or failure.fingerprint != _fingerprint(self.repository.folder(name, number))

    async def load(self, name: str, number: int) -> Version | None:
        """Load, warm and prove in a thread, open the queue; None, and a line in the log, where it fails."""
        fingerprint = _fingerprint(self.repository.folder(name, number))
        started_s = time.monotonic()
        try:
            loaded = await asyncio.to_thread(
                load_version,
                self.repository,
                name,
                number,
                self._load_engine,
                sizes=self._warm_sizes,
                precision=self._precision,
            )
        except Exception as error:  # noqa: BLE001 - whatever a version trips over refuses that version alone
            self._failures[name, number] = _Failure(fingerprint, str(error))
            _log.error(
                "version_refused",
                extra={"model": name, "version": number, "reason": str(error)},
                exc_info=not isinstance(error, LenserveError),
            )
            return None
        self._failures.pop((name, number), None)
        stack = AsyncExitStack()
        stack.push_async_callback(asyncio.to_thread, close, loaded.engine)  # last, after the batcher
        metrics = self.metrics.version(name, number)
        batcher = Batcher(
            loaded.engine.run,
            self._policy,
            partial(_record_run, metrics),
            loop_images=loaded.engine.loop_images,
        )
        version = Version(loaded, await stack.enter_async_context(batcher), metrics, stack)
        duration_s = time.monotonic() - started_s
        self.metrics.load_duration.labels(name).observe(duration_s)
        precision = loaded.precision or "fp32"
        told = log_fields(loaded.bundle, precision=precision, seconds=round(duration_s, 3))
        _log.info("version_loaded", extra=told)
        return version

    async def prove_again(self, version: Version) -> None:
        """Warm and prove a loaded version once more, in a thread.

        Raises:
            EngineError, ProofFailed: its engine no longer gives the golden probabilities.
            BundleError: its files went away, which says nothing of the engine.
            ModelUnavailable: nor does it that the process which runs it went away.
        """
        await asyncio.to_thread(prove, version.loaded, self._warm_sizes)


def log_fields(bundle: Bundle, **more: object) -> dict[str, object]:
    """What a log line says of a version."""
    return {"model": bundle.model, "version": bundle.version, "digest": bundle.digest[:12], **more}


def _record_run(metrics: VersionMetrics, run: BatchRun) -> None:
    metrics.ran(run.images, run.duration_s, run.queued_s)


def _fingerprint(folder: Path) -> _Fingerprint:
    """What changes when a version is mended: name, ctime, inode and size of every file (chmod mends too)."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, stat.st_ctime_ns, stat.st_ino, stat.st_size) for name, stat in stats)
