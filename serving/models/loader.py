"""Loads a version: reads its bundle, loads, warms up and proves its network, and opens its queue.

A version may contain its network in other precisions. The one that suits the device is served if it loads and
reproduces the golden examples within its tolerance; otherwise the exported file is served.

A version that fails is not loaded again until its files change. But if the reason may pass, such as too
little memory or a file that cannot be read, it is loaded again after growing pauses.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from serving.batching.backlog import Backlog
from serving.batching.batcher import Batcher, BatchRun
from serving.batching.policy import BatchPolicy
from serving.bundle import Bundle, Golden, Precision, Repository
from serving.engine.base import Engine
from serving.engine.memory_errors import is_out_of_memory
from serving.engine.onnx import OnnxEngine, close
from serving.engine.output_check import checked, sums_to_one
from serving.engine.proof import warm_and_prove
from serving.engine.sessions import Optimizations
from serving.errors import (
    BundleError,
    DeviceUnavailable,
    EngineError,
    LenserveError,
    OutOfMemory,
    ProofFailed,
)
from serving.metrics.quality import QualityMetrics
from serving.metrics.recorder import Metrics, VersionMetrics
from serving.models.precision import golden_tolerance, network_file
from serving.models.versions import ProvenNetwork, Version

_Fingerprint = tuple[tuple[str, int, int, int], ...]

_log = logging.getLogger(__name__)


_RETRY_S = 1.0  # pause after the first failure that may pass
_MAX_RETRY_S = 60.0
_MAX_FINGERPRINT_FILES = 1_000  # 30 ms for each look


@dataclass(frozen=True, slots=True)
class _Failure:
    fingerprint: _Fingerprint | None  # None: it could not be read
    reason: str
    pause_s: float  # until it is loaded again; infinite: until its files change
    retry_at_s: float  # on the clock of time.monotonic()


class VersionLoader:
    """Loads versions from a repository, and remembers those that failed."""

    def __init__(
        self,
        repository: Repository,
        load_engine: Callable[[Path], Engine],
        *,
        policy: BatchPolicy,
        warm_sizes: tuple[int, ...],
        metrics: Metrics,
        precision: Precision | None = None,
        retry_s: float = _RETRY_S,
    ) -> None:
        """Store the options.

        Args:
            repository: where the versions are.
            load_engine: loads an ONNX file.
            policy: batching policy of every queue.
            warm_sizes: batch sizes to run before the first request.
            metrics: metrics of the server.
            precision: the variant to serve if a version has it.
            retry_s: pause after the first failure that may pass; it doubles with every further one.
        """
        self.repository = repository
        self.metrics = metrics
        self._load_engine = load_engine
        self._policy = policy
        self._warm_sizes = warm_sizes
        self._precision = precision
        self._retry_s = retry_s
        self._failures: dict[tuple[str, int], _Failure] = {}

    def refused(self, name: str, numbers: Iterable[int]) -> dict[int, str]:
        """Return the versions that failed, and why."""
        failures = ((number, self._failures.get((name, number))) for number in sorted(set(numbers)))
        return {number: failure.reason for number, failure in failures if failure is not None}

    def forget(self, name: str) -> None:
        """Forget which versions of a model failed, so that they may be loaded again."""
        for failed in [each for each in self._failures if each[0] == name]:
            del self._failures[failed]

    def has_failed(self, name: str, number: int) -> bool:
        """Whether the last load of a version failed. Reads no files."""
        return (name, number) in self._failures

    def may_load(self, name: str, number: int) -> bool:
        """Whether a version has not failed yet, its files have changed since, or its pause is over.

        Reads its folder: called in a thread.
        """
        failure = self._failures.get((name, number))
        return (
            failure is None
            or time.monotonic() >= failure.retry_at_s
            or failure.fingerprint not in (None, _fingerprint(self.repository.folder(name, number)))
        )

    async def load(self, name: str, number: int, threads: Executor | None = None) -> Version | None:
        """Load a version and open its queue. A failure is logged and remembered, and returns None.

        Args:
            name: of the model.
            number: of the version.
            threads: load it; None: the default ones of the event loop.
        """
        started_s, loop = time.monotonic(), asyncio.get_running_loop()
        before, fields = self._failures.get((name, number)), {"model": name, "version": number}
        if before is None:
            _log.info("version_loading", extra=fields)
        failures = self.metrics.load_failures.labels(name)  # shown at 0 from now on
        folder = self.repository.folder(name, number)
        fingerprint: _Fingerprint | None = None
        try:
            fingerprint = await loop.run_in_executor(threads, _fingerprint, folder)
            if before is not None and before.fingerprint != fingerprint:  # repaired, and not only tried again
                _log.info("version_loading", extra=fields)
            network = await loop.run_in_executor(threads, self._load_network, name, number)
        except Exception as error:  # noqa: BLE001 - any failure only refuses this version
            failures.add_one()
            self._remember_failure(name, number, fingerprint, error)
            return None
        self._failures.pop((name, number), None)
        version = await self._open(network)
        duration_s = time.monotonic() - started_s
        self.metrics.load_duration.labels(name).observe(duration_s)
        fields = version.log_fields(precision=network.precision or "fp32", seconds=round(duration_s, 3))
        _log.info("version_loaded", extra=fields)
        return version

    def _remember_failure(
        self, name: str, number: int, fingerprint: _Fingerprint | None, error: Exception
    ) -> None:
        """Remember why a version failed, and log a reason that is new."""
        before, reason = self._failures.get((name, number)), str(error)
        pause_s = math.inf
        if fingerprint is None or _may_pass(error):
            was_passing = before is not None and math.isfinite(before.pause_s)
            pause_s = min(2 * before.pause_s, _MAX_RETRY_S) if before and was_passing else self._retry_s
        self._failures[name, number] = _Failure(fingerprint, reason, pause_s, time.monotonic() + pause_s)
        if before is None or before.reason != reason or before.fingerprint != fingerprint:
            retry = {"retry_s": pause_s} if math.isfinite(pause_s) else {}
            _log.error(
                "version_refused",
                extra={"model": name, "version": number, "reason": reason, **retry},
                exc_info=not isinstance(error, LenserveError),
            )

    async def why_broken(self, version: Version) -> str:
        """Prove a loaded version again, in a thread; return why its engine is broken, or nothing.

        A check that cannot be completed is only logged, because the engine may work: the files may be
        missing, memory may be short, or the device server may not answer.
        """
        try:
            await asyncio.to_thread(prove, version.network, self._warm_sizes)
        except OutOfMemory as error:
            _log_unchecked(version, error)
        except (EngineError, ProofFailed) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - any other failure is not the engine's
            _log_unchecked(version, error)
        return ""

    def _load_network(self, name: str, number: int) -> ProvenNetwork:
        bundle = self.repository.read(name, number)
        return load_network(bundle, self._load_engine, sizes=self._warm_sizes, precision=self._precision)

    async def _open(self, network: ProvenNetwork) -> Version:
        engine, bundle = network.engine, network.bundle
        stack = AsyncExitStack()
        stack.push_async_callback(asyncio.to_thread, close, engine)  # closed last, after the batcher
        metrics = self.metrics.version(bundle.model, bundle.version)
        manifest = bundle.manifest
        quality = self.metrics.quality(bundle.model, bundle.version, manifest.labels, manifest.reference)
        backlog = Backlog(run_s=network.image_s, max_batch_size=self._policy.max_batch_size)
        batcher = Batcher(
            checked(engine.run, expects_one=network.sums_to_one),
            self._policy,
            partial(_record_run, metrics, quality),
            max_images_on_loop=engine.max_images_on_loop,
            backlog=backlog,
        )
        return Version(network, await stack.enter_async_context(batcher), metrics, stack, backlog)


def load_network(
    bundle: Bundle,
    load_engine: Callable[[Path], Engine],
    *,
    sizes: tuple[int, ...],
    precision: Precision | None,
) -> ProvenNetwork:
    """Load, warm up and prove the network of a version. Called in a worker thread.

    Args:
        bundle: the version on disk.
        load_engine: loads an ONNX file.
        sizes: batch sizes to warm up.
        precision: the variant to load if the version has it.

    Raises:
        BundleError: the files are invalid, or the network does not reproduce its golden examples.
        EngineError: the network failed.
        OutOfMemory: the device has too little memory for the network.
        DeviceUnavailable: as `load_engine`.
    """
    if precision is not None and precision in bundle.manifest.variants:
        try:
            return _load_precision(bundle, load_engine, sizes, precision)
        except OutOfMemory:  # the exported file is larger
            raise
        except (BundleError, EngineError) as error:
            fields = {"model": bundle.model, "version": bundle.version, "precision": precision}
            _log.warning("variant_unfit", extra={**fields, "reason": str(error)})
    return _load_precision(bundle, load_engine, sizes, None)


def prove(network: ProvenNetwork, sizes: tuple[int, ...]) -> None:
    """Warm up and prove a loaded network again.

    Raises:
        BundleError: the golden examples cannot be read, or the network does not reproduce them (ProofFailed).
        EngineError: the network failed.
    """
    tolerance = golden_tolerance(network.bundle, network.precision)
    warm_and_prove(network.engine, network.bundle.golden(), tolerance=tolerance, sizes=sizes)


def _load_precision(
    bundle: Bundle, load_engine: Callable[[Path], Engine], sizes: tuple[int, ...], precision: Precision | None
) -> ProvenNetwork:
    golden, tolerance = bundle.golden(), golden_tolerance(bundle, precision)
    engine = load_engine(network_file(bundle, precision))
    try:
        if isinstance(engine, OnnxEngine):
            while reason := _why_unfit(engine, golden, tolerance, sizes):
                engine.drop_optimization(reason)
            engine.release_memory()
        else:
            warm_and_prove(engine, golden, tolerance=tolerance, sizes=sizes)
        # CPU time: other processes, and a low priority, must not make the network look slow.
        started_s = time.thread_time()
        engine.run(golden.images[:1])
        image_s = time.thread_time() - started_s
    except BaseException:
        close(engine)
        raise
    return ProvenNetwork(bundle, engine, precision, image_s, sums_to_one(golden.probabilities))


def _why_unfit(engine: OnnxEngine, golden: Golden, tolerance: float, sizes: tuple[int, ...]) -> str:
    """Return why an engine fails its proof, if fewer optimizations may help; nothing if it passes.

    The exception is not returned: its traceback would keep the failed session and its memory alive.
    """
    try:
        warm_and_prove(engine, golden, tolerance=tolerance, sizes=sizes)
    except (ProofFailed, EngineError) as error:
        # Graphs need additional memory; any optimization may give wrong results.
        used = engine.optimizations
        if not (used.cuda_graphs if isinstance(error, OutOfMemory) else used != Optimizations()):
            raise
        return str(error)
    return ""


def _log_unchecked(version: Version, error: Exception) -> None:
    _log.warning(
        "version_unchecked",
        extra=version.log_fields(reason=str(error)),
        exc_info=not isinstance(error, LenserveError),
    )


def _record_run(metrics: VersionMetrics, quality: QualityMetrics, run: BatchRun) -> None:
    metrics.record_run(run.images, run.duration_s, run.queued_s)
    quality.record_answers(run.output.probabilities)


def _may_pass(error: BaseException | None) -> bool:
    """Whether a load may succeed later with the same files."""
    while error is not None:
        if isinstance(error, OSError | OutOfMemory | DeviceUnavailable) or is_out_of_memory(error):
            return True
        error = error.__cause__
    return False


def _fingerprint(folder: Path) -> _Fingerprint:
    """Return data that changes when a version is repaired: path, ctime, inode and size of each file.

    The ctime, unlike the mtime, also changes with the permissions.
    """
    found: list[tuple[str, int, int, int]] = []
    folders = [str(folder)]  # no recursion: others may have made them thousands deep
    while folders and len(found) < _MAX_FINGERPRINT_FILES:
        with suppress(OSError), os.scandir(folders.pop()) as entries:  # it is gone, or changes now
            for entry in islice(entries, _MAX_FINGERPRINT_FILES - len(found)):
                stat = entry.stat(follow_symlinks=False)
                found.append((entry.path, stat.st_ctime_ns, stat.st_ino, stat.st_size))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return tuple(sorted(found))
