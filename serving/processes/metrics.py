"""The supervisor's metrics: the sums of its workers' counters, and the state of each worker."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, PlatformCollector, ProcessCollector
from prometheus_client.registry import Collector

from serving.logs import dropped_lines
from serving.metrics.families import MetricFamilies
from serving.metrics.recorder import MetricsCollector
from serving.metrics.shared_counts import CountsMemory, forget_live, read_counts


class WorkerMetrics:
    """The supervisor's registry. The supervisor handles no requests."""

    def __init__(
        self,
        memories: Mapping[int, CountsMemory],
        pids: Callable[[], Mapping[int, int]],
        *,
        refused_connections: Callable[[], int] = lambda: 0,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Register the metrics.

        Args:
            memories: the counters of all workers, by number.
            pids: returns worker number -> process id, for running workers.
            refused_connections: returns how many connections the supervisor has refused.
            is_ready: returns whether the server is ready, which it is while one worker is.
        """
        self._memories = memories
        self._refused_connections = refused_connections
        self._is_ready = is_ready
        self.registry = CollectorRegistry()
        self.registry.register(MetricsCollector(self._read))
        self.registry.register(_WorkerProcesses(pids))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._ready = Gauge(
            "lenserve_worker_ready", "1 while the worker is ready", ("worker",), registry=self.registry
        )
        self._deaths = Counter(
            "lenserve_worker_deaths",
            "Workers that exited without being stopped",
            ("worker",),
            registry=self.registry,
        )
        self._hangs = Counter(
            "lenserve_worker_hangs",
            "Workers that were killed because they gave no sign of life",
            ("worker",),
            registry=self.registry,
        )

    def _read(self) -> MetricFamilies:
        metrics = read_counts(self._memories.values())
        metrics.refused_connections.labels().value += self._refused_connections()
        metrics.dropped_log_lines.labels().value += dropped_lines()
        metrics.ready.labels().set(self._is_ready())
        return metrics

    def set_ready(self, worker: int, *, ready: bool) -> None:
        """Record whether this worker is ready."""
        self._ready.labels(str(worker)).set(ready)
        for counter in (self._deaths, self._hangs):
            counter.labels(str(worker))  # shown as 0 from the start

    def count_hang(self, worker: int) -> None:
        """Count a worker that hangs. Its death is counted too."""
        self._hangs.labels(str(worker)).inc()

    def count_death(self, worker: int) -> None:
        """Count a death, and drop the worker's live gauges."""
        self._deaths.labels(str(worker)).inc()
        if worker in self._memories:  # the device server has no counters
            forget_live(self._memories[worker])


class _WorkerProcesses(Collector):
    """Memory, CPU and open files of each worker, as lenserve_worker_process_*."""

    def __init__(self, pids: Callable[[], Mapping[int, int]]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for worker, pid in self._pids().items():
            for found in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                name = f"lenserve_worker_{found.name}"
                family = families.setdefault(
                    name, Metric(name, f"{found.documentation} Of a worker.", found.type)
                )
                for sample in found.samples:
                    family.add_sample(f"lenserve_worker_{sample.name}", {"worker": str(worker)}, sample.value)
        yield from families.values()
