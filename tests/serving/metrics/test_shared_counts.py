"""Counts of several processes, each with its own file."""

import threading
from pathlib import Path

from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import SharedCounts, forget_live, read_counts

SERVED = ("digits", "1")


def _worker(folder: Path, number: int) -> Metrics:
    return Metrics(SharedCounts(folder, number))


def _count(metrics: Metrics, *, pending: int, ready: bool = True) -> None:
    version = metrics.version("digits", 1)
    version.ran(3, 0.5, [0.25])
    version.request_failed("OVERLOADED", 0.25)
    metrics.pending_images.labels().set(pending)
    metrics.ready.labels().set(ready)
    metrics.version_state.labels(*SERVED, "ready").set(1)


def test_counts_add_up_and_gauges_combine(tmp_path: Path) -> None:
    """Sums of what was counted; of gauges the sum, the least or the latest, as each is defined."""
    first, second = _worker(tmp_path, 1), _worker(tmp_path, 2)
    _count(first, pending=2)
    _count(second, pending=3, ready=False)
    first.last_run.labels(*SERVED).set(1e9)
    second.last_run.labels(*SERVED).set(2e9)
    first.flush()
    second.flush()

    together = read_counts(tmp_path)

    stage = together.stage_duration.labels(*SERVED, "queue")
    assert (stage.count, stage.total) == (2, 0.5)
    assert stage.buckets == [2 * each for each in first.stage_duration.labels(*SERVED, "queue").buckets]
    run = together.run_duration.labels(*SERVED, "3")
    assert (run.count, run.total) == (2, 1.0)
    assert together.request_failures.labels(*SERVED, "OVERLOADED").value == 2
    assert together.pending_images.labels().value == 5
    assert together.ready.labels().value == 0
    assert together.version_state.labels(*SERVED, "ready").value == 1
    assert together.last_run.labels(*SERVED).value == 2e9


def test_every_process_sees_the_sum(tmp_path: Path) -> None:
    """Its own newest counts, and what others have flushed: in a scrape and in the statistics."""
    first, second = _worker(tmp_path, 1), _worker(tmp_path, 2)
    _count(first, pending=0)
    _count(second, pending=0)
    first.flush()
    assert second.statistics()[SERVED].run_count == 2
    assert second.registry.get_sample_value("nv_inference_count", {"model": "digits", "version": "1"}) == 6


def test_a_successor_resumes_its_predecessors_counts(tmp_path: Path) -> None:
    """Counters go on; gauges of the dead process do not."""
    _count(first := _worker(tmp_path, 1), pending=2)
    first.flush()
    successor = _worker(tmp_path, 1)
    assert successor.pending_images.labels().value == 0
    assert successor.version_state.items() == []
    assert successor.statistics()[SERVED].last_run_s > 1.7e9
    _count(successor, pending=1)
    successor.flush()
    together = read_counts(tmp_path)
    assert together.run_duration.labels(*SERVED, "3").count == 2
    assert together.pending_images.labels().value == 1


def test_the_dead_keep_their_counts_alone(tmp_path: Path) -> None:
    """What was true only while the worker lived is dropped; a worker that never counted is no error."""
    _count(worker := _worker(tmp_path, 1), pending=2)
    worker.flush()
    forget_live(tmp_path, 1)
    forget_live(tmp_path, 2)
    together = read_counts(tmp_path)
    assert together.pending_images.labels().value == 0
    assert together.version_state.items() == []
    assert together.run_duration.labels(*SERVED, "3").count == 1


def test_a_file_is_written_only_when_counts_changed(tmp_path: Path) -> None:
    """An idle worker leaves the disk alone."""
    worker = _worker(tmp_path, 1)
    worker.flush()
    (file,) = tmp_path.iterdir()
    before = file.stat().st_ino  # another file replaces the old one
    worker.flush()
    assert file.stat().st_ino == before
    _count(worker, pending=0)
    worker.flush()
    assert file.stat().st_ino != before


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """However often it reads while two threads of the worker write."""
    worker = _worker(tmp_path, 1)
    worker.rpc("/a/B").ended("OK", 0.5)
    worker.flush()
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            worker.rpc("/a/B").ended("OK", 0.5)
            worker.flush()

    threads = [threading.Thread(target=flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    counts = [read_counts(tmp_path).requests.labels("/a/B", "OK").value for _ in range(200)]
    done.set()
    for thread in threads:
        thread.join(timeout=20)
    assert counts == sorted(counts)
    assert counts[0] >= 1
