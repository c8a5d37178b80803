"""Scrapes of the supervisor, with counters from real processes."""

import os
import subprocess
import sys
from pathlib import Path

from serving.processes.metrics import WorkerMetrics

_NUMBERED = """
import sys
from pathlib import Path
from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import SharedCounts
metrics = Metrics(SharedCounts(Path(sys.argv[1]), int(sys.argv[2])))
metrics.rpc("/a/B").record_call("OK", 0.5)
metrics.pending_images.labels().set(2)
for state in ("loading", "ready"):
    metrics.version_state.labels("digits", "1", state).set(1)
metrics.version_state.remove("digits", "1", "loading")
metrics.flush()
"""


def test_a_successor_continues_the_counters_of_the_dead_worker(tmp_path: Path) -> None:
    """Deaths add no files; gauges of a dead worker are dropped."""
    workers = WorkerMetrics(tmp_path, dict)

    def shown(name: str, **labels: str) -> float | None:
        return workers.registry.get_sample_value(name, labels)

    for number in (1, 2, 1):
        subprocess.run(
            [sys.executable, "-c", _NUMBERED, str(tmp_path), str(number)],
            cwd=Path(__file__).parents[3],
            check=True,
        )
    assert shown("lenserve_requests_total", method="/a/B", code="OK") == 3
    assert shown("lenserve_version_state", model="digits", version="1", state="ready") == 1
    assert shown("lenserve_version_state", model="digits", version="1", state="loading") is None
    assert shown("lenserve_pending_images") == 4

    workers.count_death(1)
    workers.set_ready(2, ready=True)
    assert shown("lenserve_pending_images") == 2
    assert shown("lenserve_requests_total", method="/a/B", code="OK") == 3
    assert shown("lenserve_worker_deaths_total", worker="1") == 1
    assert shown("lenserve_worker_ready", worker="2") == 1
    assert {file.stem.rpartition("_")[2] for file in tmp_path.iterdir()} == {"1", "2"}


def test_memory_and_time_of_each_worker_are_shown(tmp_path: Path) -> None:
    """The supervisor's own values would not cover the workers; a dead process is left out."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    workers = WorkerMetrics(tmp_path, lambda: {1: os.getpid(), 2: ended.pid})

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
