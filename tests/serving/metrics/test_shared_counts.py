"""Counters of several processes, each with its own file."""

import threading
from pathlib import Path

import pytest

from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import SharedCounts, forget_live, read_counts

SERVED = ("digits", "1")


def _worker(folder: Path, number: int) -> Metrics:
    return Metrics(SharedCounts(folder, number))


def _count(metrics: Metrics, *, pending: int, ready: bool = True) -> None:
    version = metrics.version("digits", 1)
    version.record_run(3, 0.5, [0.25])
    version.record_failure("OVERLOADED", 0.25)
    metrics.pending_images.labels().set(pending)
    metrics.ready.labels().set(ready)
    metrics.version_state.labels(*SERVED, "ready").set(1)


def test_counters_add_up_and_gauges_are_combined(tmp_path: Path) -> None:
    """Gauges by sum, minimum or maximum, as each is defined."""
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
    """Its counters and those that others have flushed, in a scrape and in the statistics."""
    first, second = _worker(tmp_path, 1), _worker(tmp_path, 2)
    _count(first, pending=0)
    _count(second, pending=0)
    first.flush()
    assert second.statistics()[SERVED].run_count == 2
    assert second.registry.get_sample_value("nv_inference_count", {"model": "digits", "version": "1"}) == 6


def test_a_successor_continues_the_counters(tmp_path: Path) -> None:
    """Live gauges of the process that died are dropped."""
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


def test_a_dead_worker_keeps_its_counters_only(tmp_path: Path) -> None:
    """Its live gauges are dropped. A worker without a file is not an error."""
    _count(worker := _worker(tmp_path, 1), pending=2)
    worker.flush()
    forget_live(tmp_path, 1)
    forget_live(tmp_path, 2)
    together = read_counts(tmp_path)
    assert together.pending_images.labels().value == 0
    assert together.version_state.items() == []
    assert together.run_duration.labels(*SERVED, "3").count == 1


def test_a_file_is_written_only_after_changes(tmp_path: Path) -> None:
    """An idle worker does not write to the disk."""
    worker = _worker(tmp_path, 1)
    worker.flush()
    (file,) = tmp_path.iterdir()
    before = file.stat().st_ino  # another file replaces the old one
    worker.flush()
    assert file.stat().st_ino == before
    _count(worker, pending=0)
    worker.flush()
    assert file.stat().st_ino != before


def test_a_write_that_fails_is_logged_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk, or a folder that a stopped supervisor removed, must not end a worker's calls."""
    folder = tmp_path / "counts"
    worker = _worker(folder, 1)
    for _ in range(2):
        worker.rpc("/a/B").record_call("OK", 0.5)
        worker.flush()
    assert [record.message for record in caplog.records] == ["counters_not_written"]
    assert worker.statistics() == {}

    folder.mkdir()
    worker.flush()
    assert read_counts(folder).requests.labels("/a/B", "OK").value == 2


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    """A reader never sees half a file while two threads of a worker write."""
    worker = _worker(tmp_path, 1)
    worker.rpc("/a/B").record_call("OK", 0.5)
    worker.flush()
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            worker.rpc("/a/B").record_call("OK", 0.5)
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
