"""What a version has done so far, read from samples of the metrics, and Triton's names for it.

Nothing is counted twice: a request pays for our own metrics alone, a scrape and ModelStatistics derive the
rest. Knows no request and no RPC.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import UnknownMetricFamily

SERVED = ("model", "version")

# Triton's reasons; whatever else fails a request is OTHER.
_TRITON_REASONS = {
    "OVERLOADED": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "ENGINE_ERROR": "BACKEND",
}
_US_PER_S = 1e6


@dataclass(slots=True)
class Tally:
    """How often something happened, and how long it took in all."""

    count: int = 0
    duration_s: float = 0.0


@dataclass(slots=True)
class VersionStatistics:
    """All that one version has done since the server started."""

    success: Tally = field(default_factory=Tally)  # requests
    failure: Tally = field(default_factory=Tally)
    failures: dict[str, int] = field(default_factory=dict)  # by reason
    decode: Tally = field(default_factory=Tally)  # images, with geometry
    queue: Tally = field(default_factory=Tally)  # requests' parts, of at most one batch each
    infer: Tally = field(default_factory=Tally)  # the same: a run counts once for each part that was in it
    rank: Tally = field(default_factory=Tally)  # requests
    runs: dict[int, Tally] = field(default_factory=dict)  # of the engine, by their number of images
    last_run_s: float = 0.0  # Unix time

    @property
    def run_count(self) -> int:
        """Number of engine runs."""
        return sum(run.count for run in self.runs.values())

    @property
    def run_images(self) -> int:
        """Number of images that the engine was given."""
        return sum(images * run.count for images, run in self.runs.items())


def read_statistics(families: Iterable[Metric]) -> dict[tuple[str, str], VersionStatistics]:
    """Statistics by model and version, from the families that `Metrics` keeps."""
    found: dict[tuple[str, str], VersionStatistics] = {}
    for family in families:
        for sample in family.samples:
            if "model" in sample.labels and "version" in sample.labels:
                served = (sample.labels["model"], sample.labels["version"])
                _add(found.setdefault(served, VersionStatistics()), sample.name, sample.labels, sample.value)
    return found


def _add(statistics: VersionStatistics, name: str, labels: Mapping[str, str], value: float) -> None:
    match name:
        case "lenserve_stage_duration_seconds_count" | "lenserve_stage_duration_seconds_sum":
            _add_stage(statistics, labels["stage"], name, value)
        case "lenserve_run_duration_seconds_count":
            statistics.runs.setdefault(int(labels["images"]), Tally()).count = int(value)
        case "lenserve_run_duration_seconds_sum":
            statistics.runs.setdefault(int(labels["images"]), Tally()).duration_s = value
        case "lenserve_request_infer_seconds_total":
            statistics.infer.duration_s = value
        case "lenserve_request_failures_total":
            statistics.failures[labels["reason"]] = int(value)
            statistics.failure.count += int(value)
        case "lenserve_request_failure_seconds_total":
            statistics.failure.duration_s = value
        case "lenserve_last_run_timestamp_seconds":
            statistics.last_run_s = value


def _add_stage(statistics: VersionStatistics, stage: str, name: str, value: float) -> None:
    tally = {
        "decode": statistics.decode,
        "queue": statistics.queue,
        "rank": statistics.rank,
        "total": statistics.success,
    }.get(stage)
    if tally is None:
        return
    if name.endswith("_sum"):
        tally.duration_s = value
        return
    tally.count = int(value)
    if stage == "queue":
        statistics.infer.count = tally.count


def triton_families(statistics: Mapping[tuple[str, str], VersionStatistics]) -> Iterator[Metric]:
    """The counters of Triton's /metrics, by the names and labels that dashboards ask for.

    Their names lack the _total that this library gives to counters, so they are announced as untyped.
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
        tallies = (each.success, each.queue, each.decode, each.infer, each.rank)
        for family, tally in zip(durations.values(), tallies, strict=True):
            family.add_metric(served, round(tally.duration_s * _US_PER_S))
    yield from (success, failure, count, executions, *durations.values())


def _by_triton_reason(failures: Mapping[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
    for reason, count in failures.items():
        counts[_TRITON_REASONS.get(reason, "OTHER")] += count
    return counts


def _family(name: str, meaning: str, labels: tuple[str, ...] = SERVED) -> UnknownMetricFamily:
    return UnknownMetricFamily(name, meaning, labels=labels)
