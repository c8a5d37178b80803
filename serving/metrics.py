"""Every metric of the server, in one object that is passed in. Times are in seconds.

Whoever does the work returns the facts; the classifier, the models and the layer around the RPC table
record them here.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

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


class Metrics:
    """The metrics and the registry they live in: several servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        served = ("model", "version")

        self.requests = Counter(
            "lenserve_requests",
            "Calls that ended, by gRPC status",
            ("method", "code"),
            registry=self.registry,
        )
        self.request_duration = Histogram(
            "lenserve_request_duration_seconds",
            "From the decoded call to the encoded answer",
            ("method",),
            registry=self.registry,
            buckets=_DURATION_BUCKETS_S,
        )
        self.images = Counter(
            "lenserve_images",
            "Images by outcome: OK or the reason of the error",
            (*served, "outcome"),
            registry=self.registry,
        )
        self.stage_duration = Histogram(
            "lenserve_stage_duration_seconds",
            "Time of one image (decode: with geometry) or batch (queue, infer) in one stage",
            (*served, "stage"),
            registry=self.registry,
            buckets=_DURATION_BUCKETS_S,
        )
        self.batch_size = Histogram(
            "lenserve_batch_size",
            "Images in one engine run",
            served,
            registry=self.registry,
            buckets=_BATCH_BUCKETS,
        )
        self.pending_images = Gauge(
            "lenserve_pending_images", "Images admitted and not yet answered", registry=self.registry
        )
        self.version_state = Gauge(
            "lenserve_version_state",
            "1 for the state that each known version is in",
            (*served, "state"),
            registry=self.registry,
        )
        self.load_duration = Histogram(
            "lenserve_version_load_duration_seconds",
            "Reading, verifying, loading, warming and proving a version",
            ("model",),
            registry=self.registry,
            buckets=_LOAD_BUCKETS_S,
        )
        self.ready = Gauge("lenserve_ready", "1 while the server is ready", registry=self.registry)
        self.device = Gauge(
            "lenserve_device",
            "1 for the device that was chosen",
            ("device", "provider"),
            registry=self.registry,
        )
