"""Scrapes of the supervisor, with counters from real processes."""

import os
import subprocess
import sys
from pathlib import Path

from serving.metrics.shared_counts import CountsMemory
from serving.processes.metrics import WorkerMetrics

_NUMBERED = """
import sys
from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import CountsMemory, SharedCounts
first, second = map(int, sys.argv[2:])
metrics = Metrics(SharedCounts({1: CountsMemory((first, second))}, 1))
metrics.rpc("/a/B").record_call("OK", 0.5)
metrics.pending_images.labels().set(2)
for state in ("loading", "ready"):
    metrics.version_state.labels("digits", "1", state).set(1)
metrics.version_state.remove("digits", "1", "loading")
metrics.flush()
"""


def test_a_successor_continues_the_counters_of_the_dead_worker() -> None:
    """Its gauges are dropped. The device server, which is worker 0, has no counters."""
    memories = {number: CountsMemory.create("test") for number in (1, 2)}
    workers = WorkerMetrics(memories, dict)

    def shown(name: str, **labels: str) -> float | None:
        return workers.registry.get_sample_value(name, labels)

    for number in (1, 2, 1):
        descriptors = memories[number].descriptors
        subprocess.run(
            [sys.executable, "-c", _NUMBERED, str(number), *map(str, descriptors)],
            cwd=Path(__file__).parents[3],
            pass_fds=descriptors,
            check=True,
        )
    assert shown("lenserve_requests_total", method="/a/B", code="OK") == 3
    assert shown("lenserve_version_state", model="digits", version="1", state="ready") == 1
    assert shown("lenserve_version_state", model="digits", version="1", state="loading") is None
    assert shown("lenserve_pending_images") == 4

    workers.count_death(1)
    workers.count_death(0)
    workers.set_ready(2, ready=True)
    assert shown("lenserve_pending_images") == 2
    assert shown("lenserve_requests_total", method="/a/B", code="OK") == 3
    assert shown("lenserve_worker_deaths_total", worker="1") == 1
    assert shown("lenserve_worker_ready", worker="2") == 1
    for memory in memories.values():
        memory.close()


def test_memory_and_time_of_each_worker_are_shown() -> None:
    """The supervisor's own values would not cover the workers; a dead process is left out."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    workers = WorkerMetrics({}, lambda: {1: os.getpid(), 2: ended.pid})

    def shown(name: str, **labels: str) -> float | None:
        return workers.registry.get_sample_value(name, labels)

    ours, own = (
        shown(f"{prefix}process_resident_memory_bytes", **labels)
        for prefix, labels in (("lenserve_worker_", {"worker": "1"}), ("", {}))
    )
    assert ours is not None
    assert own is not None
    assert abs(ours - own) < 2**24
    assert (shown("lenserve_worker_process_cpu_seconds_total", worker="1") or 0) > 0
    assert shown("lenserve_worker_process_cpu_seconds_total", worker="2") is None
