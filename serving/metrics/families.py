"""Every metric of the server: name, help, labels, buckets. Knows nothing of who counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from serving.metrics.triton_statistics import SERVED

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


class MetricFamilies:
    """The families, in a registry. Times are in seconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "lenserve_requests",
            "Calls that ended, by gRPC status",
            ("method", "code"),
            registry=registry,
        )
        self.request_duration = Histogram(
            "lenserve_request_duration_seconds",
            "From the decoded call to the encoded answer",
            ("method",),
            registry=registry,
            buckets=_DURATION_BUCKETS_S,
        )
        self.stream_messages = Counter(
            "lenserve_stream_messages",
            "Messages of streams that were answered, by gRPC status",
            ("method", "code"),
            registry=registry,
        )
        self.images = Counter(
            "lenserve_images",
            "Images by outcome: OK or the reason of the error",
            (*SERVED, "outcome"),
            registry=registry,
        )
        self.stage_duration = Histogram(
            "lenserve_stage_duration_seconds",
            "Time of an image (decode, with geometry), a request (queue, rank, total) or a run (infer)",
            (*SERVED, "stage"),
            registry=registry,
            buckets=_DURATION_BUCKETS_S,
        )
        self.batch_size = Histogram(
            "lenserve_batch_size",
            "Images in one engine run",
            SERVED,
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        self.run_duration = Summary(
            "lenserve_run_duration_seconds",
            "Engine runs by their exact number of images",
            (*SERVED, "images"),
            registry=registry,
        )
        self.request_infer = Counter(
            "lenserve_request_infer_seconds",
            "Time of engine runs, counted once for each request in the run",
            SERVED,
            registry=registry,
        )
        self.last_run = Gauge(
            "lenserve_last_run_timestamp_seconds",
            "When the engine last ran, Unix time",
            SERVED,
            registry=registry,
            multiprocess_mode="max",
        )
        self.request_failures = Counter(
            "lenserve_request_failures",
            "Requests that a version failed, by reason",
            (*SERVED, "reason"),
            registry=registry,
        )
        self.request_failure_duration = Counter(
            "lenserve_request_failure_seconds",
            "Time of requests that failed",
            SERVED,
            registry=registry,
        )
        self.pending_images = Gauge(
            "lenserve_pending_images",
            "Images admitted and not yet answered",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.event_loop_tasks = Gauge(
            "lenserve_event_loop_tasks",
            "Tasks of the event loop that have not ended: calls, streams, and a few of the server's own",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.version_state = Gauge(
            "lenserve_version_state",
            "1 for the state that each known version is in",
            (*SERVED, "state"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.load_duration = Histogram(
            "lenserve_version_load_duration_seconds",
            "Reading, verifying, loading, warming and proving a version",
            ("model",),
            registry=registry,
            buckets=_LOAD_BUCKETS_S,
        )
        self.ready = Gauge(
            "lenserve_ready",
            "1 while the server is ready",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.device = Gauge(
            "lenserve_device",
            "1 for the device that was chosen",
            ("device", "provider"),
            registry=registry,
            multiprocess_mode="livemax",
        )
