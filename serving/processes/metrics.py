"""What a supervisor shows to a scrape: all that its workers count together, and how they are themselves."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, PlatformCollector, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from serving.metrics.recorder import WithTritonNames


class WorkerMetrics:
    """The metrics of the supervisor, and the registry they live in. It counts no request itself."""

    def __init__(self, folder: Path, pids: Callable[[], Mapping[int, int]]) -> None:
        """Make them.

        Args:
            folder: in which the workers count.
            pids: the process of each worker that lives, by its number.
        """
        self._folder = folder
        self.registry = CollectorRegistry()
        self.registry.register(WithTritonNames(MultiProcessCollector(None, str(folder))))  # type: ignore[no-untyped-call]
        self.registry.register(_WorkerProcesses(pids))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._ready = Gauge(
            "lenserve_worker_ready", "1 while the worker is ready", ("worker",), registry=self.registry
        )
        self._deaths = Counter(
            "lenserve_worker_deaths",
            "Workers that ended without being told to",
            ("worker",),
            registry=self.registry,
        )

    def is_ready(self, worker: int, *, ready: bool) -> None:
        """How this worker is now."""
        self._ready.labels(str(worker)).set(ready)

    def died(self, worker: int) -> None:
        """Count a death, and forget what was true only while the worker lived."""
        self._deaths.labels(str(worker)).inc()
        mark_process_dead(worker, str(self._folder))  # type: ignore[no-untyped-call]


class _WorkerProcesses(Collector):
    """Memory, CPU and files of each worker: lenserve_worker_process_..., as process_... of the library."""

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
