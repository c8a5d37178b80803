"""Defines every metric of the server: name, help, labels, buckets."""

from collections.abc import Iterator

from prometheus_client import Metric

from serving.bundle.manifest import CONFIDENCE_BOUNDS
from serving.bundle.reference import stability_index
from serving.metrics.counters import (
    BoundedCounterFamily,
    CounterFamily,
    GaugeFamily,
    HistogramFamily,
    IndexFamily,
    SummaryFamily,
)

_AnyFamily = CounterFamily | GaugeFamily | HistogramFamily | IndexFamily | SummaryFamily

SERVED = ("model", "version")
# Of go-grpc-prometheus, whose names the dashboards and rollout tools of gRPC servers query.
GRPC_LABELS = ("grpc_type", "grpc_service", "grpc_method")

# 0.1 ms .. 10 s: LeNet-5 on a CPU answers in under 1 ms, behind a full queue in seconds.
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
# 0.1 s .. 60 s: reading, verifying, loading, warming up and proving a version.
_LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


# Labels of one version with a separate series: a network of a thousand would export as many.
MAX_SHOWN_LABELS = 50
# Chance moves the index of fewer images by about 0.1.
MIN_DRIFT_IMAGES = 100


class MetricFamilies:
    """The metric families of one server, initially without series. Times are in seconds."""

    def __init__(self) -> None:
        self.requests = CounterFamily(
            "lenserve_requests",
            "Calls that ended, by gRPC status",
            ("method", "code"),
        )
        self.started = CounterFamily(
            "grpc_server_started",
            "Calls that began, under the name of go-grpc-prometheus",
            GRPC_LABELS,
        )
        self.request_duration = HistogramFamily(
            "lenserve_request_duration_seconds",
            "From the decoded call to the encoded answer",
            ("method",),
            bounds=_DURATION_BUCKETS_S,
        )
        self.stream_messages = CounterFamily(
            "lenserve_stream_messages",
            "Messages of streams that were answered, by gRPC status",
            ("method", "code"),
        )
        self.images = CounterFamily(
            "lenserve_images",
            "Images by outcome: OK or the reason of the error",
            (*SERVED, "outcome"),
        )
        self.stage_duration = HistogramFamily(
            "lenserve_stage_duration_seconds",
            "Time of an image (decode, with geometry), a request (queue, rank, total) or a run (infer)",
            (*SERVED, "stage"),
            bounds=_DURATION_BUCKETS_S,
            shows_unused=False,  # a thousand idle models would export 100,000 series
        )
        self.batch_size = HistogramFamily(
            "lenserve_batch_size",
            "Images in one engine run",
            SERVED,
            bounds=_BATCH_BUCKETS,
            shows_unused=False,
        )
        self.run_duration = SummaryFamily(
            "lenserve_run_duration_seconds",
            "Engine runs by their exact number of images",
            (*SERVED, "images"),
        )
        self.request_infer = CounterFamily(
            "lenserve_request_infer_seconds",
            "Time of engine runs, counted once for each request in the run",
            SERVED,
        )
        self.last_run = GaugeFamily(
            "lenserve_last_run_timestamp_seconds",
            "When the engine last ran, Unix time",
            SERVED,
            across=max,
            live=False,
        )
        self.request_failures = CounterFamily(
            "lenserve_request_failures",
            "Requests that a version failed, by reason",
            (*SERVED, "reason"),
        )
        self.request_failure_duration = CounterFamily(
            "lenserve_request_failure_seconds",
            "Time of requests that failed",
            SERVED,
        )
        self.predictions = BoundedCounterFamily(
            "lenserve_predictions",
            "Images by predicted label; of many labels the first that were predicted, and the rest as other",
            (*SERVED, "label"),
            shown=MAX_SHOWN_LABELS,
        )
        self.confidence = HistogramFamily(
            "lenserve_confidence_ratio",
            "Probability of the predicted label, of each image",
            SERVED,
            bounds=CONFIDENCE_BOUNDS,
            shows_unused=False,
        )
        self.stability_index = IndexFamily(
            "lenserve_population_stability_index",
            "Drift of recent answers from those for the test images: of labels, of confidence",
            (*SERVED, "distribution"),
            index=stability_index,
            min_images=MIN_DRIFT_IMAGES,
        )
        self.window_images = GaugeFamily(
            "lenserve_drift_window_images",
            "Recent images that the population stability index is computed from",
            SERVED,
            across=sum,
        )
        self.captured_images = CounterFamily(
            "lenserve_captured_images",
            "Images chosen for capture: written, duplicate, dropped (no room, or it has stopped), failed",
            (*SERVED, "outcome"),
        )
        self.capture_bytes = GaugeFamily(
            "lenserve_capture_bytes",
            "Captured images on disk",
            across=sum,
        )
        self.capture_stopped = GaugeFamily(
            "lenserve_capture_stopped",
            "1 while captured images cannot be written",
            across=max,
        )
        self.pending_images = GaugeFamily(
            "lenserve_pending_images",
            "Images admitted and not yet answered",
            across=sum,
        )
        self.pending_bytes = GaugeFamily(
            "lenserve_pending_bytes",
            "Bytes of requests received and not yet answered; at least 12 KiB for each",
            across=sum,
        )
        self.refused_requests = CounterFamily(
            "lenserve_refused_requests",
            "Requests that were not received completely: pending_bytes (over the limit) or too_slow",
            ("reason",),
        )
        self.open_connections = GaugeFamily(
            "lenserve_open_connections",
            "Open connections, without those in their TLS handshake",
            across=sum,
        )
        self.refused_connections = CounterFamily(
            "lenserve_refused_connections",
            "Connections that were closed because too many are open",
        )
        self.event_loop_tasks = GaugeFamily(
            "lenserve_event_loop_tasks",
            "Tasks of the event loop that have not ended: calls, streams, and a few of the server's own",
            across=sum,
        )
        self.event_loop_lag = GaugeFamily(
            "lenserve_event_loop_lag_seconds",
            "The longest time of the last 30 to 60 s in which the event loop was late",
            across=max,
        )
        self.dropped_log_lines = CounterFamily(
            "lenserve_dropped_log_lines",
            "Lines of the log that were dropped because stderr was not read or could not be written",
        )
        self.version_state = GaugeFamily(
            "lenserve_version_state",
            "1 for the state that each known version is in",
            (*SERVED, "state"),
            across=max,
        )
        self.model_ready = GaugeFamily(
            "lenserve_model_ready",
            "1 while the default version of a known model can answer",
            ("model",),
            across=min,
        )
        self.repository_problems = GaugeFamily(
            "lenserve_repository_problems",
            "Models whose folder cannot be read or followed, and 1 if the repository itself cannot be read",
            across=max,
        )
        self.load_duration = HistogramFamily(
            "lenserve_version_load_duration_seconds",
            "Reading, verifying, loading, warming and proving a version",
            ("model",),
            bounds=_LOAD_BUCKETS_S,
        )
        self.load_failures = CounterFamily(
            "lenserve_version_load_failures",
            "Loads of a version that failed; a version that is refused again and again counts each time",
            ("model",),
        )
        self.ready = GaugeFamily(
            "lenserve_ready",
            "1 while the server is ready",
            across=min,
        )
        self.device = GaugeFamily(
            "lenserve_device",
            "1 for the device that was chosen",
            ("device", "provider"),
            across=max,
        )

    def all(self) -> list[_AnyFamily]:
        """All families, in the order of a scrape."""
        return [each for each in vars(self).values() if isinstance(each, _AnyFamily)]

    def collect(self) -> Iterator[Metric]:
        """Return the families for a scrape."""
        for family in self.all():
            yield family.collect()
