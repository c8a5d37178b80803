"""Records the server's work in metrics. Times are in seconds.

Inner code returns measurements; the classifier, the models and the middleware record them here, through a
`VersionMetrics` or an `RpcMetrics` that they keep.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector

from serving.bundle import Reference
from serving.metrics.counters import CounterValue, SummaryValue
from serving.metrics.families import SERVED, MetricFamilies
from serving.metrics.grpc_server import handled_calls, started_calls
from serving.metrics.quality import QualityMetrics
from serving.metrics.shared_counts import SharedCounts
from serving.metrics.triton_statistics import VersionStatistics, compute_statistics, triton_families

DEFAULT_DRIFT_WINDOW_S = 3600.0


class Metrics(MetricFamilies):
    """The metrics of one server, and the registry for scrapes.

    Args:
        shared: counters of several processes; if given, scrapes and statistics show their sums.
        drift_window_s: drift is that of the answers of this time, and of more if they are few.
    """

    def __init__(
        self, shared: SharedCounts | None = None, *, drift_window_s: float = DEFAULT_DRIFT_WINDOW_S
    ) -> None:
        super().__init__()
        self._drift_window_s = drift_window_s
        self._qualities: dict[tuple[str, str], QualityMetrics] = {}
        self._shared = shared
        if shared is not None:
            shared.resume(self)
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._rpcs: dict[str, RpcMetrics] = {}
        self.registry = CollectorRegistry()
        self.registry.register(MetricsCollector(self._read))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def version(self, model: str, version: int) -> "VersionMetrics":
        """Return the recorder of a version. Call this once, when the version is loaded."""
        served = (model, str(version))
        if served not in self._versions:
            self._versions[served] = VersionMetrics(self, *served)
        return self._versions[served]

    def quality(
        self, model: str, version: int, labels: Sequence[str], reference: Reference | None
    ) -> QualityMetrics:
        """Return the recorder of a version's answers. Call this once, when the version is loaded."""
        served = (model, str(version))
        if served in self._qualities:  # loaded again
            self._qualities[served].count()
        window_s = self._drift_window_s
        quality = self._qualities[served] = QualityMetrics(self, served, labels, reference, window_s=window_s)
        return quality

    def forget(self, model: str, version: int) -> None:
        """Remove all series of a version that is not loaded. Its recorder must not be used any more."""
        served = (model, str(version))
        self._versions.pop(served, None)
        self._qualities.pop(served, None)
        for family in self.all():
            if family is not self.version_state:  # which follows the repository: see StateMetrics
                family.remove_all(SERVED, served)
        if not any(other == model for other, _ in self._versions):
            self.load_duration.remove_all(SERVED[:1], served[:1])
            self.load_failures.remove_all(SERVED[:1], served[:1])

    def rpc(self, method: str, grpc_type: str = "") -> "RpcMetrics":
        """Return the recorder of a method. Call this once, when its RPC is wrapped.

        Args:
            method: /package.Service/Method.
            grpc_type: unary, server_stream or bidi_stream; without it, no grpc_server_* metric counts it.
        """
        if method not in self._rpcs:
            self._rpcs[method] = RpcMetrics(self, method, grpc_type)
        return self._rpcs[method]

    def flush(self) -> None:
        """Write the counters for the other processes, if any."""
        if self._shared is not None:
            self._count_answers()
            self._shared.write(self)

    def statistics(self) -> dict[tuple[str, str], VersionStatistics]:
        """Return the statistics of all versions since the server started, by model and version."""
        return compute_statistics(self._read())

    def _read(self) -> MetricFamilies:
        """Return the counters of all processes, or of this one if it is the only one."""
        if self._shared is None:
            self._count_answers()
            return self
        self.flush()
        return self._shared.read()

    def _count_answers(self) -> None:
        for quality in list(self._qualities.values()):  # a copy: the event loop may load a version now
            quality.count()


# Failures that alerts read, shown at 0 when a version is loaded: a counter that appears at 1 has no increase.
_ALERT_REASONS = ("DEADLINE_EXCEEDED", "ENGINE_ERROR", "INTERNAL", "OVERLOADED")


class VersionMetrics:
    """Records the work of one version."""

    __slots__ = (
        "_batch_size",
        "_decode",
        "_failures",
        "_images",
        "_infer",
        "_last_run",
        "_metrics",
        "_ok_images",
        "_queue",
        "_rank",
        "_request_failure_duration",
        "_request_infer",
        "_runs",
        "_served",
        "_total",
    )

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._served = served = (model, version)
        stage = metrics.stage_duration
        self._decode = stage.labels(*served, "decode")
        self._queue = stage.labels(*served, "queue")
        self._infer = stage.labels(*served, "infer")
        self._rank = stage.labels(*served, "rank")
        self._total = stage.labels(*served, "total")
        self._batch_size = metrics.batch_size.labels(*served)
        self._request_infer = metrics.request_infer.labels(*served)
        self._last_run = metrics.last_run.labels(*served)
        self._request_failure_duration = metrics.request_failure_duration.labels(*served)
        self._runs: dict[int, SummaryValue] = {}  # by number of images
        self._images: dict[str, CounterValue] = {}  # by outcome
        self._failures: dict[str, CounterValue] = {}  # by reason
        self._ok_images = self._outcome("OK")
        for reason in _ALERT_REASONS:
            self._failure(reason)

    def record_decode(self, duration_s: float) -> None:
        """Record that one image was decoded and resized."""
        self._decode.observe(duration_s)

    def record_run(self, images: int, infer_s: float, queue_s_of_each: Sequence[float]) -> None:
        """Record one run of the engine.

        Args:
            images: number of images in the run.
            infer_s: duration of the run.
            queue_s_of_each: time that each request of the run spent in the queue.
        """
        run = self._runs.get(images)
        if run is None:
            run = self._metrics.run_duration.labels(*self._served, str(images))
            self._runs[images] = run
        run.count += 1
        run.total += infer_s
        self._infer.observe(infer_s)
        self._batch_size.observe(images)
        self._request_infer.value += infer_s * len(queue_s_of_each)
        self._last_run.value = time.time()
        self._queue.observe_all(queue_s_of_each)

    def record_ranking(self, duration_s: float) -> None:
        """Record that the results of one request were ranked."""
        self._rank.observe(duration_s)

    def record_success(self, images: int, duration_s: float) -> None:
        """Record one successful request. Its `images` with a result count as OK."""
        self._total.observe(duration_s)
        self._ok_images.value += images

    def record_failure(self, reason: str, duration_s: float) -> None:
        """Record one failed request."""
        (self._failures.get(reason) or self._failure(reason)).value += 1
        self._request_failure_duration.value += duration_s

    def count_images(self, outcome: str, count: int = 1) -> None:
        """Count images that failed, by reason. `record_success` counts those that are OK."""
        (self._images.get(outcome) or self._outcome(outcome)).value += count

    def _failure(self, reason: str) -> CounterValue:
        failures = self._failures[reason] = self._metrics.request_failures.labels(*self._served, reason)
        return failures

    def _outcome(self, outcome: str) -> CounterValue:
        images = self._images[outcome] = self._metrics.images.labels(*self._served, outcome)
        return images


class RpcMetrics:
    """Records the calls of one method."""

    __slots__ = ("_codes", "_duration", "_message_codes", "_method", "_metrics", "started")

    def __init__(self, metrics: Metrics, method: str, grpc_type: str) -> None:
        self._metrics = metrics
        self._method = method
        self._duration = metrics.request_duration.labels(method)
        self._codes: dict[str, CounterValue] = {}
        self._message_codes: dict[str, CounterValue] = {}
        self.started = started_calls(metrics, method, grpc_type) if grpc_type else CounterValue()

    def show_zeros(self, codes: Iterable[str]) -> None:
        """Show calls that ended with these gRPC status names from now on, at 0 before the first."""
        for code in codes:
            self._codes[code] = self._metrics.requests.labels(self._method, code)

    def record_call(self, code: str, duration_s: float) -> None:
        """Record one call that ended with this gRPC status name."""
        requests = self._codes.get(code)
        if requests is None:
            requests = self._codes[code] = self._metrics.requests.labels(self._method, code)
        requests.value += 1
        self._duration.observe(duration_s)

    def record_message(self, code: str) -> None:
        """Record one message of a stream that was answered with this gRPC status name."""
        messages = self._message_codes.get(code)
        if messages is None:
            messages = self._metrics.stream_messages.labels(self._method, code)
            self._message_codes[code] = messages
        messages.value += 1


class MetricsCollector(Collector):
    """Exports our metrics, and Triton's and gRPC's metrics computed from them.

    Args:
        read: returns the counters to export.
    """

    def __init__(self, read: Callable[[], MetricFamilies]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Return the families of a scrape."""
        metrics = self._read()
        yield from metrics.collect()
        yield handled_calls(metrics)
        yield from triton_families(compute_statistics(metrics))
