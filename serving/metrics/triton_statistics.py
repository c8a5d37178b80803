"""Statistics of each version, computed from our metrics, and the same numbers as Triton's metrics.

Requests update only our metrics; scrapes and ModelStatistics derive these from them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import UnknownMetricFamily

from serving.metrics.counters import HistogramValue, SummaryValue
from serving.metrics.families import SERVED, MetricFamilies

# Triton's reasons; any other reason is OTHER.
_TRITON_REASONS = {
    "OVERLOADED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "ENGINE_ERROR": "BACKEND",
}
_US_PER_S = 1e6


@dataclass(frozen=True, slots=True)
class TimedCount:
    """Number of events, and their total duration."""

    count: int = 0
    duration_s: float = 0.0


@dataclass(slots=True)
class VersionStatistics:
    """Statistics of one version since the server started."""

    success: TimedCount = TimedCount()  # requests
    failure: TimedCount = TimedCount()  # requests
    failures: dict[str, int] = field(default_factory=dict)  # requests, by reason
    decode: TimedCount = TimedCount()  # images, including resizing
    queue: TimedCount = TimedCount()  # parts of requests: a request is split into one part per batch
    infer: TimedCount = TimedCount()  # parts of requests: a run counts once for each part in it
    rank: TimedCount = TimedCount()  # requests
    runs: dict[int, TimedCount] = field(default_factory=dict)  # runs of the engine, by number of images
    last_run_s: float = 0.0  # Unix time

    @property
    def run_count(self) -> int:
        """Number of engine runs."""
        return sum(run.count for run in self.runs.values())

    @property
    def run_images(self) -> int:
        """Number of images in all engine runs."""
        return sum(images * run.count for images, run in self.runs.items())


def compute_statistics(metrics: MetricFamilies) -> dict[tuple[str, str], VersionStatistics]:
    """Return statistics by model and version, including versions without requests."""
    found: defaultdict[tuple[str, str], VersionStatistics] = defaultdict(VersionStatistics)
    for (model, version, _), _ in (*metrics.images.items(), *metrics.version_state.items()):
        found[model, version]
    for (model, version, images), run in metrics.run_duration.items():
        found[model, version].runs[int(images)] = _timed(run)
    for (model, version, reason), failed in metrics.request_failures.items():
        if failed.value:
            found[model, version].failures[reason] = int(failed.value)
    for (model, version), each in found.items():
        stages = [
            metrics.stage_duration.find(model, version, stage)
            for stage in ("total", "decode", "queue", "rank")
        ]
        each.success, each.decode, each.queue, each.rank = map(_timed, stages)
        infer = metrics.request_infer.find(model, version)
        each.infer = TimedCount(each.queue.count, infer.value if infer else 0.0)
        failed_for = metrics.request_failure_duration.find(model, version)
        each.failure = TimedCount(sum(each.failures.values()), failed_for.value if failed_for else 0.0)
        last_run = metrics.last_run.find(model, version)
        each.last_run_s = last_run.value if last_run else 0.0
    return dict(found)


def triton_families(statistics: Mapping[tuple[str, str], VersionStatistics]) -> Iterator[Metric]:
    """Return the counters of Triton's /metrics, with the names and labels that its dashboards query.

    They are untyped: prometheus_client appends _total to the names of counters, and Triton does not.
    """
    success = _family("nv_inference_request_success", "Requests that succeeded")
    failure = _family("nv_inference_request_failure", "Requests that failed", (*SERVED, "reason"))
    count = _family("nv_inference_count", "Images that the network was run on")
    executions = _family("nv_inference_exec_count", "Runs of the network")
    durations = {
        "request": _family("nv_inference_request_duration_us", "Requests that succeeded, end to end"),
        "queue": _family("nv_inference_queue_duration_us", "Requests in the queue"),
        "input": _family("nv_inference_compute_input_duration_us", "Decoding and geometry, of every image"),
        "infer": _family("nv_inference_compute_infer_duration_us", "Requests in runs of the network"),
        "output": _family("nv_inference_compute_output_duration_us", "Ranking and encoding answers"),
    }
    for served, each in statistics.items():
        success.add_metric(served, each.success.count)
        for reason, failures in _by_triton_reason(each.failures).items():
            failure.add_metric((*served, reason), failures)
        count.add_metric(served, each.run_images)
        executions.add_metric(served, each.run_count)
        timed = (each.success, each.queue, each.decode, each.infer, each.rank)
        for family, stage in zip(durations.values(), timed, strict=True):
            family.add_metric(served, round(stage.duration_s * _US_PER_S))
    yield from (success, failure, count, executions, *durations.values())


def _by_triton_reason(failures: Mapping[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
    for reason, count in failures.items():
        counts[_TRITON_REASONS.get(reason, "OTHER")] += count
    return counts


def _timed(value: HistogramValue | SummaryValue | None) -> TimedCount:
    return TimedCount() if value is None else TimedCount(int(value.count), value.total)


def _family(name: str, meaning: str, labels: tuple[str, ...] = SERVED) -> UnknownMetricFamily:
    return UnknownMetricFamily(name, meaning, labels=labels)
