"""Counters of several processes, each with its own memory."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import CountsMemory, SharedCounts, forget_live, read_counts

SERVED = ("digits", "1")
_WIDE = 200  # bytes of a content that takes long to write


Memories = dict[int, CountsMemory]


@pytest.fixture
def memories() -> Iterator[Memories]:
    """The counters of two workers."""
    created = {number: CountsMemory.create(f"test-{number}") for number in (1, 2)}
    yield created
    for memory in created.values():
        memory.close()


def _worker(memories: Memories, number: int) -> Metrics:
    return Metrics(SharedCounts(memories, number))


def _count(metrics: Metrics, *, pending: int, ready: bool = True) -> None:
    version = metrics.version("digits", 1)
    version.record_run(3, 0.5, [0.25])
    version.record_failure("OVERLOADED", 0.25)
    metrics.pending_images.labels().set(pending)
    metrics.ready.labels().set(ready)
    metrics.version_state.labels(*SERVED, "ready").set(1)


def test_counters_add_up_and_gauges_are_combined(memories: Memories) -> None:
    """Gauges by sum, minimum or maximum, as each is defined."""
    first, second = _worker(memories, 1), _worker(memories, 2)
    _count(first, pending=2)
    _count(second, pending=3, ready=False)
    first.last_run.labels(*SERVED).set(1e9)
    second.last_run.labels(*SERVED).set(2e9)
    first.flush()
    second.flush()

    together = read_counts(memories.values())

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


def test_every_process_sees_the_sum(memories: Memories) -> None:
    """Its counters and those that others have flushed, in a scrape and in the statistics."""
    first, second = _worker(memories, 1), _worker(memories, 2)
    _count(first, pending=0)
    _count(second, pending=0)
    first.flush()
    assert second.statistics()[SERVED].run_count == 2
    assert second.registry.get_sample_value("nv_inference_count", {"model": "digits", "version": "1"}) == 6


def test_a_successor_continues_the_counters(memories: Memories) -> None:
    """Live gauges of the process that died are dropped."""
    _count(first := _worker(memories, 1), pending=2)
    first.flush()
    successor = _worker(memories, 1)
    assert successor.pending_images.labels().value == 0
    assert successor.version_state.items() == []
    assert successor.statistics()[SERVED].last_run_s > 1.7e9
    _count(successor, pending=1)
    successor.flush()
    together = read_counts(memories.values())
    assert together.run_duration.labels(*SERVED, "3").count == 2
    assert together.pending_images.labels().value == 1


def test_a_dead_worker_keeps_its_counters_only(memories: Memories) -> None:
    """Its live gauges are dropped. A worker that has written nothing is not an error."""
    _count(worker := _worker(memories, 1), pending=2)
    worker.flush()
    forget_live(memories[1])
    forget_live(memories[2])
    together = read_counts(memories.values())
    assert together.pending_images.labels().value == 0
    assert together.version_state.items() == []
    assert together.run_duration.labels(*SERVED, "3").count == 1


def test_counters_are_written_only_after_changes(memories: Memories) -> None:
    """An idle worker does nothing."""
    worker = _worker(memories, 1)
    worker.flush()
    before = _times(memories[1])
    worker.flush()
    assert _times(memories[1]) == before
    _count(worker, pending=0)
    worker.flush()
    assert _times(memories[1]) != before


def _times(memory: CountsMemory) -> list[int]:
    return [os.fstat(descriptor).st_mtime_ns for descriptor in memory.descriptors]


_FULL = """
import resource, sys
from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import CountsMemory, SharedCounts, read_counts
memories = {1: CountsMemory.create("test")}
worker = Metrics(SharedCounts(memories, 1))
worker.rpc("/a/B").record_call("OK", 0.5)
worker.flush()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
for _ in range(2):
    worker.rpc("/a/B").record_call("OK", 0.5)
    worker.flush()
print(read_counts(memories.values()).requests.labels("/a/B", "OK").value)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
worker.flush()
print(read_counts(memories.values()).requests.labels("/a/B", "OK").value)
"""


def test_a_write_that_fails_is_logged_once_and_harms_nothing() -> None:
    """Without memory the counters before are shown, and the process lives. The limit stands for it."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1.0", "3.0"]
    assert done.stderr.splitlines() == ["counters_not_written"]


def test_a_writer_that_is_killed_in_the_middle_leaves_the_content_before() -> None:
    """Whichever byte was its last; the next writer overwrites what it left."""
    memory = CountsMemory.create("test")
    memory.write(b"first")
    memory.write(b"second")
    for torn in (b"thi", b"third, but longer"):
        os.pwrite(memory.descriptors[1], torn, 20)  # the header of the third content is missing
        assert memory.read() == b"second"
    memory.write(b"third")
    assert memory.read() == b"third"
    memory.close()


def test_a_reader_never_sees_half_a_content(memories: Memories) -> None:
    """Two threads of a worker write meanwhile."""
    worker = _worker(memories, 1)
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
    counts = [read_counts(memories.values()).requests.labels("/a/B", "OK").value for _ in range(200)]
    done.set()
    for thread in threads:
        thread.join(timeout=20)
    assert counts == sorted(counts)
    assert counts[0] >= 1


def test_a_reader_never_goes_back() -> None:
    """However often a worker writes while it reads: counters that fall are taken for a restart."""
    memory = CountsMemory.create("test")
    memory.write(b"0")
    done = threading.Event()

    def write() -> None:
        for number in count(1):
            if done.is_set():
                return
            memory.write(str(number).encode().ljust(_WIDE))

    writer = threading.Thread(target=write)
    writer.start()
    numbers = [int(memory.read()) for _ in range(3_000)]
    done.set()
    writer.join(timeout=20)
    memory.close()
    assert numbers == sorted(numbers)
