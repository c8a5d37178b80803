"""Every metric of the server, in one object that is passed in. Times are in seconds.

Whoever does the work returns the facts; the classifier, the models and the layer around the RPC table
record them here, through a `VersionMetrics` or an `RpcMetrics` that they take once. Where several processes
serve, PROMETHEUS_MULTIPROC_DIR names the folder in which they count together, and each can be scraped.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    Summary,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.inference_statistics import SERVED, VersionStatistics, read_statistics, triton_families
from serving.tallies import CountTally, HistogramTally, LastTally, SummaryTally, Tally

AnyTally = TypeVar("AnyTally", bound=Tally)

# 0.1 ms .. 10 s: LeNet-5 on a CPU answers in under 1 ms, a queue at its limit in seconds.
_DURATION_BUCKETS_S = (
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2.5e-3,
    5e-3,
    1e-2,
    2.5e-2,
    5e-2,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
# 1 .. 1024 images, the bounds of max_batch_size.
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# 0.1 s .. 60 s: reading, verifying, loading, warming and proving a version.
_LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


# The environment variable that tells prometheus_client where processes count together.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def count_as_worker(worker: int) -> None:
    """Count, in this process, in the files of the worker of this number, where its predecessor stopped.

    By process id every death would leave files behind that each scrape had to read.
    """
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics and the registry they live in: several servers in one process do not mix."""

    def __init__(self) -> None:
        counted = CollectorRegistry()
        self._shared = SHARED_FOLDER in os.environ
        self._source: Collector = MultiProcessCollector(None) if self._shared else counted  # type: ignore[no-untyped-call]
        self._tallies: list[Tally] = []
        self._telling = Lock()
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._rpcs: dict[str, RpcMetrics] = {}
        self.registry = CollectorRegistry()  # what a scrape sees
        self.registry.register(WithTritonNames(self._source, self.tell))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        self.requests = Counter(
            "lenserve_requests",
            "Calls that ended, by gRPC status",
            ("method", "code"),
            registry=counted,
        )
        self.request_duration = Histogram(
            "lenserve_request_duration_seconds",
            "From the decoded call to the encoded answer",
            ("method",),
            registry=counted,
            buckets=_DURATION_BUCKETS_S,
        )
        self.stream_messages = Counter(
            "lenserve_stream_messages",
            "Messages of streams that were answered, by gRPC status",
            ("method", "code"),
            registry=counted,
        )
        self.images = Counter(
            "lenserve_images",
            "Images by outcome: OK or the reason of the error",
            (*SERVED, "outcome"),
            registry=counted,
        )
        self.stage_duration = Histogram(
            "lenserve_stage_duration_seconds",
            "Time of an image (decode, with geometry), a request (queue, rank, total) or a run (infer)",
            (*SERVED, "stage"),
            registry=counted,
            buckets=_DURATION_BUCKETS_S,
        )
        self.batch_size = Histogram(
            "lenserve_batch_size",
            "Images in one engine run",
            SERVED,
            registry=counted,
            buckets=_BATCH_BUCKETS,
        )
        self.run_duration = Summary(
            "lenserve_run_duration_seconds",
            "Engine runs by their exact number of images",
            (*SERVED, "images"),
            registry=counted,
        )
        self.request_infer = Counter(
            "lenserve_request_infer_seconds",
            "Time of engine runs, counted once for each request in the run",
            SERVED,
            registry=counted,
        )
        self.last_run = Gauge(
            "lenserve_last_run_timestamp_seconds",
            "When the engine last ran, Unix time",
            SERVED,
            registry=counted,
            multiprocess_mode="max",
        )
        self.request_failures = Counter(
            "lenserve_request_failures",
            "Requests that a version failed, by reason",
            (*SERVED, "reason"),
            registry=counted,
        )
        self.request_failure_duration = Counter(
            "lenserve_request_failure_seconds",
            "Time of requests that failed",
            SERVED,
            registry=counted,
        )
        self.pending_images = Gauge(
            "lenserve_pending_images",
            "Images admitted and not yet answered",
            registry=counted,
            multiprocess_mode="livesum",
        )
        self.event_loop_tasks = Gauge(
            "lenserve_event_loop_tasks",
            "Tasks of the event loop that have not ended: calls, streams, and a few of the server's own",
            registry=counted,
            multiprocess_mode="livesum",
        )
        self.version_state = Gauge(
            "lenserve_version_state",
            "1 for the state that each known version is in",
            (*SERVED, "state"),
            registry=counted,
            multiprocess_mode="livemax",
        )
        self.load_duration = Histogram(
            "lenserve_version_load_duration_seconds",
            "Reading, verifying, loading, warming and proving a version",
            ("model",),
            registry=counted,
            buckets=_LOAD_BUCKETS_S,
        )
        self.ready = Gauge(
            "lenserve_ready",
            "1 while the server is ready",
            registry=counted,
            multiprocess_mode="livemin",
        )
        self.device = Gauge(
            "lenserve_device",
            "1 for the device that was chosen",
            ("device", "provider"),
            registry=counted,
            multiprocess_mode="livemax",
        )

    def forget_state(self, model: str, version: str, state: str) -> None:
        """A version is in this state no more. Files that processes share forget nothing: there it is 0."""
        if self._shared:
            self.version_state.labels(model, version, state).set(0)
        else:
            self.version_state.remove(model, version, state)

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

    def keep(self, tally: AnyTally) -> AnyTally:
        """Remember to tell what this one counts."""
        with self._telling:
            self._tallies.append(tally)
        return tally

    def tell(self) -> None:
        """Bring every metric up to date with what was counted."""
        with self._telling:
            for tally in self._tallies:
                tally.tell()

    def statistics(self) -> dict[tuple[str, str], VersionStatistics]:
        """What every version has done since the server started, by model and version."""
        self.tell()
        return read_statistics(self._source.collect())


class VersionMetrics:
    """Records what one version does, in tallies: see tallies.py."""

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
        stage, keep = metrics.stage_duration, metrics.keep
        self._decode = keep(HistogramTally(stage.labels(*served, "decode")))
        self._queue = keep(HistogramTally(stage.labels(*served, "queue")))
        self._infer = keep(HistogramTally(stage.labels(*served, "infer")))
        self._rank = keep(HistogramTally(stage.labels(*served, "rank")))
        self._total = keep(HistogramTally(stage.labels(*served, "total")))
        self._batch_size = keep(HistogramTally(metrics.batch_size.labels(*served)))
        self._request_infer = keep(CountTally(metrics.request_infer.labels(*served)))
        self._last_run = keep(LastTally(metrics.last_run.labels(*served)))
        self._request_failure_duration = keep(CountTally(metrics.request_failure_duration.labels(*served)))
        self._runs: dict[int, SummaryTally] = {}  # by number of images
        self._images: dict[str, CountTally] = {}  # by outcome
        self._failures: dict[str, CountTally] = {}  # by reason
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
            summary = self._metrics.run_duration.labels(*self._served, str(images))
            run = self._runs[images] = self._metrics.keep(SummaryTally(summary))
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
            counter = self._metrics.request_failures.labels(*self._served, reason)
            failures = self._failures[reason] = self._metrics.keep(CountTally(counter))
        failures.value += 1
        self._request_failure_duration.value += duration_s

    def image_outcome(self, outcome: str, count: int = 1) -> None:
        """So many images ended in an error of this reason. `request_ended` counts those that are OK."""
        (self._images.get(outcome) or self._outcome(outcome)).value += count

    def _outcome(self, outcome: str) -> CountTally:
        counter = self._metrics.images.labels(*self._served, outcome)
        tally = self._images[outcome] = self._metrics.keep(CountTally(counter))
        return tally


class RpcMetrics:
    """Records the calls of one method, in tallies."""

    __slots__ = ("_codes", "_duration", "_message_codes", "_method", "_metrics")

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._duration = metrics.keep(HistogramTally(metrics.request_duration.labels(method)))
        self._codes: dict[str, CountTally] = {}
        self._message_codes: dict[str, CountTally] = {}

    def ended(self, code: str, duration_s: float) -> None:
        """One call ended with a gRPC status of this name."""
        requests = self._codes.get(code)
        if requests is None:
            counter = self._metrics.requests.labels(self._method, code)
            requests = self._codes[code] = self._metrics.keep(CountTally(counter))
        requests.value += 1
        self._duration.observe(duration_s)

    def message_ended(self, code: str) -> None:
        """One message of a stream was answered, with a gRPC status of this name."""
        messages = self._message_codes.get(code)
        if messages is None:
            counter = self._metrics.stream_messages.labels(self._method, code)
            messages = self._message_codes[code] = self._metrics.keep(CountTally(counter))
        messages.value += 1


class WithTritonNames(Collector):
    """Our families, and Triton's that follow from them."""

    def __init__(self, source: Collector, tell: Callable[[], None] = lambda: None) -> None:
        self._source = source
        self._tell = tell

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees."""
        self._tell()
        families = list(self._source.collect())
        yield from families
        yield from triton_families(read_statistics(families))
