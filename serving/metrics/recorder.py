"""What the server counts, in one object that is passed in. Times are in seconds.

Code that does work returns the facts; the classifier, the models and the middleware record them here, through
a `VersionMetrics` or an `RpcMetrics` that they take once.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector

from serving.metrics.counters import CounterValue, SummaryValue
from serving.metrics.families import MetricFamilies
from serving.metrics.shared_counts import SharedCounts
from serving.metrics.triton_statistics import VersionStatistics, compute_statistics, triton_families


class Metrics(MetricFamilies):
    """The metrics of one server and the registry that shows them: several servers in one process do not mix.

    Args:
        shared: with other processes, whose counts a scrape and the statistics include.
    """

    def __init__(self, shared: SharedCounts | None = None) -> None:
        super().__init__()
        self._shared = shared
        if shared is not None:
            shared.resume(self)
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._rpcs: dict[str, RpcMetrics] = {}
        self.registry = CollectorRegistry()  # what a scrape sees
        self.registry.register(MetricsCollector(self._read))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def version(self, model: str, version: int) -> "VersionMetrics":
        """The one recorder of a version: take it once, when the version is loaded."""
        served = (model, str(version))
        if served not in self._versions:
            self._versions[served] = VersionMetrics(self, *served)
        return self._versions[served]

    def rpc(self, method: str) -> "RpcMetrics":
        """The one recorder of a method: take it once, when its row is wrapped."""
        if method not in self._rpcs:
            self._rpcs[method] = RpcMetrics(self, method)
        return self._rpcs[method]

    def flush(self) -> None:
        """Let other processes see what this one has counted."""
        if self._shared is not None:
            self._shared.write(self)

    def statistics(self) -> dict[tuple[str, str], VersionStatistics]:
        """What every version has done since the server started, by model and version."""
        return compute_statistics(self._read())

    def _read(self) -> MetricFamilies:
        """The counts of all processes, or of the only one."""
        if self._shared is None:
            return self
        self.flush()
        return self._shared.read()


class VersionMetrics:
    """Records what one version does, in plain numbers: see counters.py."""

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

    def decoded(self, duration_s: float) -> None:
        """One image was decoded and brought into geometry."""
        self._decode.observe(duration_s)

    def ran(self, images: int, infer_s: float, queue_s_of_each: Sequence[float]) -> None:
        """The engine ran once.

        Args:
            images: in the run.
            infer_s: of the run.
            queue_s_of_each: how long each request in the run had waited.
        """
        run = self._runs.get(images)
        if run is None:
            run = self._metrics.run_duration.labels(*self._served, str(images))
            self._runs[images] = run
        run.observe(infer_s)
        self._infer.observe(infer_s)
        self._batch_size.observe(images)
        self._request_infer.value += infer_s * len(queue_s_of_each)
        self._last_run.value = time.time()
        for queue_s in queue_s_of_each:
            self._queue.observe(queue_s)

    def ranked(self, duration_s: float) -> None:
        """The answers of one request were ranked and encoded."""
        self._rank.observe(duration_s)

    def request_ended(self, images: int, duration_s: float) -> None:
        """One request succeeded, in which so many images have an answer: they count as OK."""
        self._total.observe(duration_s)
        self._ok_images.value += images

    def request_failed(self, reason: str, duration_s: float) -> None:
        """One request failed."""
        failures = self._failures.get(reason)
        if failures is None:
            failures = self._metrics.request_failures.labels(*self._served, reason)
            self._failures[reason] = failures
        failures.value += 1
        self._request_failure_duration.value += duration_s

    def image_outcome(self, outcome: str, count: int = 1) -> None:
        """So many images ended in an error of this reason. `request_ended` counts those that are OK."""
        (self._images.get(outcome) or self._outcome(outcome)).value += count

    def _outcome(self, outcome: str) -> CounterValue:
        images = self._images[outcome] = self._metrics.images.labels(*self._served, outcome)
        return images


class RpcMetrics:
    """Records the calls of one method."""

    __slots__ = ("_codes", "_duration", "_message_codes", "_method", "_metrics")

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._duration = metrics.request_duration.labels(method)
        self._codes: dict[str, CounterValue] = {}
        self._message_codes: dict[str, CounterValue] = {}

    def ended(self, code: str, duration_s: float) -> None:
        """One call ended with a gRPC status of this name."""
        requests = self._codes.get(code)
        if requests is None:
            requests = self._codes[code] = self._metrics.requests.labels(self._method, code)
        requests.value += 1
        self._duration.observe(duration_s)

    def message_ended(self, code: str) -> None:
        """One message of a stream was answered, with a gRPC status of this name."""
        messages = self._message_codes.get(code)
        if messages is None:
            messages = self._metrics.stream_messages.labels(self._method, code)
            self._message_codes[code] = messages
        messages.value += 1


class MetricsCollector(Collector):
    """Our metrics, and Triton's that follow from them.

    Args:
        read: returns the counts to show.
    """

    def __init__(self, read: Callable[[], MetricFamilies]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees."""
        metrics = self._read()
        yield from metrics.collect()
        yield from triton_families(compute_statistics(metrics))
