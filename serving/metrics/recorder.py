"""What the server counts, in one object that is passed in. Times are in seconds.

Whoever does the work returns the facts; the classifier, the models and the middleware of the RPCs
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
    Metric,
    PlatformCollector,
    ProcessCollector,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.metrics.counters import CountTally, HistogramTally, LastTally, SummaryTally, Tally
from serving.metrics.families import MetricFamilies
from serving.metrics.triton_statistics import VersionStatistics, read_statistics, triton_families

AnyTally = TypeVar("AnyTally", bound=Tally)

# The environment variable that tells prometheus_client where processes count together.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def count_as_worker(worker: int) -> None:
    """Count, in this process, in the files of the worker of this number, where its predecessor stopped.

    By process id every death would leave files behind that each scrape had to read.
    """
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


class Metrics(MetricFamilies):
    """The metrics and the registry they live in: several servers in one process do not mix."""

    def __init__(self) -> None:
        counted = CollectorRegistry()
        super().__init__(counted)
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
    """Records what one version does, in tallies: see counters.py."""

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
