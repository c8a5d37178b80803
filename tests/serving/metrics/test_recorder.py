"""Metrics in a scrape."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from prometheus_client import generate_latest

from serving.bundle import reference_of
from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import CountsMemory

LARGEST_BATCH = 1024

_EXPOSITION = Path(__file__).parent / "exposition.txt"


def test_our_metrics_follow_prometheus_naming() -> None:
    """A prefix, base units and a help text."""
    families = [each for each in Metrics().registry.collect() if each.name.startswith("lenserve")]
    assert len(families) >= 10
    for family in families:
        assert re.fullmatch(r"lenserve_[a-z_]+", family.name)
        assert family.documentation
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_size", "_ratio")), family.name


def test_two_servers_in_one_process_do_not_mix() -> None:
    """Each has its own counters and registry."""
    first, second = Metrics(), Metrics()
    first.images.labels("digits", "1", "OK").value += 3
    labels = {"model": "digits", "version": "1", "outcome": "OK"}
    assert first.registry.get_sample_value("lenserve_images_total", labels) == 3
    assert second.registry.get_sample_value("lenserve_images_total", labels) is None


def test_the_largest_batch_has_its_own_bucket() -> None:
    """Batches of every allowed size fall into buckets by power of two, none into +Inf."""
    metrics = Metrics()
    metrics.batch_size.labels("digits", "1").observe(LARGEST_BATCH)
    labels = {"model": "digits", "version": "1", "le": f"{LARGEST_BATCH}.0"}
    assert metrics.registry.get_sample_value("lenserve_batch_size_bucket", labels) == 1


def test_a_scrape_has_the_metrics_of_the_process() -> None:
    """Memory and CPU, in addition to our metrics."""
    text = generate_latest(Metrics().registry).decode()
    assert "process_resident_memory_bytes" in text
    assert "python_info" in text
    assert "lenserve_ready 0.0" in text


def _scraped(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": "digits", "version": "1", **labels})


def _use(metrics: Metrics) -> None:
    """Two runs, of 3 images of 2 requests and of 1 image; two requests fail."""
    version = metrics.version("digits", 1)
    version.record_decode(0.002)
    version.record_run(3, 0.5, [0.25, 0.125])
    version.record_run(1, 0.25, [0.0])
    for images, duration_s in ((2, 1.0), (1, 0.5), (1, 0.25)):
        version.record_ranking(0.0625)
        version.record_success(images, duration_s)
    version.count_images("EMPTY_IMAGE", 2)
    version.record_failure("OVERLOADED", 0.125)
    version.record_failure("INVALID_TENSOR", 0.25)


def test_a_version_records_stages_runs_and_images() -> None:
    """Every method of a recorder updates its metric, with the version's labels."""
    metrics = Metrics()
    _use(metrics)

    stages = {
        stage: (
            _scraped(metrics, "lenserve_stage_duration_seconds_count", stage=stage),
            _scraped(metrics, "lenserve_stage_duration_seconds_sum", stage=stage),
        )
        for stage in ("decode", "queue", "infer", "rank", "total")
    }
    assert stages == {
        "decode": (1, 0.002),
        "queue": (3, 0.375),
        "infer": (2, 0.75),
        "rank": (3, 0.1875),
        "total": (3, 1.75),
    }
    assert _scraped(metrics, "lenserve_batch_size_sum") == 4
    assert _scraped(metrics, "lenserve_run_duration_seconds_sum", images="3") == 0.5
    assert _scraped(metrics, "lenserve_images_total", outcome="OK") == 4
    assert _scraped(metrics, "lenserve_images_total", outcome="EMPTY_IMAGE") == 2
    assert _scraped(metrics, "lenserve_request_failures_total", reason="OVERLOADED") == 1


def test_an_idle_version_has_few_series() -> None:
    """Histograms appear with their first observation: a thousand idle models must not slow scrapes."""
    metrics = Metrics()
    metrics.version("digits", 1)
    metrics.version_state.labels("digits", "1", "ready").set(1)
    metrics.load_duration.labels("digits").observe(0.5)
    assert generate_latest(metrics.registry).decode().count('{model="digits"') <= 70
    _use(metrics)
    assert _scraped(metrics, "lenserve_stage_duration_seconds_count", stage="decode") == 1


def test_a_forgotten_version_leaves_no_series() -> None:
    """The time to load belongs to a model: it goes with the last version."""
    metrics = Metrics()
    for number in (1, 2):
        metrics.version("digits", number)
    metrics.load_duration.labels("digits").observe(0.5)
    _use(metrics)
    metrics.forget("digits", 1)
    assert 'version="1"' not in generate_latest(metrics.registry).decode()
    assert "lenserve_version_load_duration_seconds_sum{" in generate_latest(metrics.registry).decode()
    metrics.forget("digits", 2)
    assert 'model="digits"' not in generate_latest(metrics.registry).decode()


def test_a_recorder_is_created_once() -> None:
    """After a reload, for example, the counters continue."""
    metrics = Metrics()
    assert metrics.version("digits", 1) is metrics.version("digits", 1)
    assert metrics.rpc("/a/B") is metrics.rpc("/a/B")


def test_a_method_records_its_calls_by_status() -> None:
    """Every status has a counter; all statuses share a histogram."""
    metrics = Metrics()
    rpc = metrics.rpc("/a/B")
    rpc.record_call("OK", 0.5)
    rpc.record_call("OK", 0.5)
    rpc.record_call("NOT_FOUND", 0.25)

    value = metrics.registry.get_sample_value
    assert value("lenserve_requests_total", {"method": "/a/B", "code": "OK"}) == 2
    assert value("lenserve_requests_total", {"method": "/a/B", "code": "NOT_FOUND"}) == 1
    assert value("lenserve_request_duration_seconds_sum", {"method": "/a/B"}) == 1.25


def test_tritons_metrics_are_computed_from_ours() -> None:
    """The counters of Triton's /metrics, in microseconds. A run's time counts for each request in it."""
    metrics = Metrics()
    _use(metrics)

    names = ("request", "queue", "compute_input", "compute_infer", "compute_output")
    durations_us = {name: _scraped(metrics, f"nv_inference_{name}_duration_us") for name in names}
    assert durations_us == {
        "request": 1_750_000,
        "queue": 375_000,
        "compute_input": 2000,
        "compute_infer": 1_250_000,
        "compute_output": 187_500,
    }
    assert _scraped(metrics, "nv_inference_request_success") == 3
    assert _scraped(metrics, "nv_inference_count") == 4
    assert _scraped(metrics, "nv_inference_exec_count") == 2
    failures = {
        reason: _scraped(metrics, "nv_inference_request_failure", reason=reason)
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    }
    assert failures == {"REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": 1}
    assert 'nv_inference_count{model="digits",version="1"} 4.0' in generate_latest(metrics.registry).decode()


def test_the_exposition_is_stable() -> None:
    """All text of our metrics: families, help, labels, buckets and values. Dashboards depend on the names."""
    metrics = Metrics()
    _use(metrics)
    metrics.version("digits", 1)
    metrics.last_run.labels("digits", "1").set(1.5)
    metrics.rpc("/a/B", "unary").record_call("OK", 0.5)
    metrics.rpc("/a/B").started.add_one()
    metrics.rpc("/a/B").record_message("OK")
    answers = np.eye(2, dtype=np.float32)[[0, 1] * 100]  # (N, K)
    metrics.quality("digits", 1, ("even", "odd"), reference_of(answers)).record_answers(answers)
    metrics.pending_images.labels().set_function(lambda: 3)
    metrics.captured_images.labels("digits", "1", "written").add_one()
    metrics.event_loop_tasks.labels().set(5)
    metrics.event_loop_lag.labels().set(0.25)
    metrics.dropped_log_lines.labels().add_one()
    metrics.model_ready.labels("digits").set(1)
    metrics.pending_bytes.labels().set(4096)
    metrics.refused_requests.labels("too_slow").add_one()
    metrics.open_connections.labels().set(2)
    metrics.version_state.labels("digits", "1", "ready").set(1)
    metrics.load_duration.labels("digits").observe(0.3)
    metrics.ready.labels().set(1)
    metrics.device.labels("cpu", "CPUExecutionProvider").set(1)

    text = generate_latest(metrics.registry).decode()

    lines = [line for line in text.splitlines() if re.match(r"(# \w+ )?(lenserve|nv|grpc)_", line)]
    shown = [re.sub(r"(_created(\{.*\})?) [0-9.e+]+$", r"\1 <time>", line) for line in lines]
    assert shown == _EXPOSITION.read_text().splitlines()


_WORKER = """
import sys
from pathlib import Path
from prometheus_client import generate_latest
from serving.metrics.recorder import Metrics
from serving.metrics.shared_counts import CountsMemory, SharedCounts
a, b, c, d = map(int, sys.argv[2:])
memories = {1: CountsMemory((a, b)), 2: CountsMemory((c, d))}
metrics = Metrics(SharedCounts(memories, int(sys.argv[1])))
metrics.version("digits", 1).record_run(3, 0.5, [0.25])
metrics.rpc("/a/B").record_call("OK", 0.5)
metrics.ready.labels().set(1)
print(generate_latest(metrics.registry).decode())
"""


def test_counts_of_processes_are_summed() -> None:
    """A scrape of any process shows the sum of all, Triton's metrics too."""
    memories = [CountsMemory.create("test") for _ in range(2)]
    descriptors = [each for memory in memories for each in memory.descriptors]
    for worker in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, worker, *map(str, descriptors)],
            cwd=Path(__file__).parents[3],
            pass_fds=descriptors,
            capture_output=True,
            text=True,
            check=True,
        )
    for memory in memories:
        memory.close()

    lines = done.stdout.splitlines()
    for line in (
        'nv_inference_count{model="digits",version="1"} 6.0',
        'nv_inference_queue_duration_us{model="digits",version="1"} 500000.0',
        'lenserve_requests_total{code="OK",method="/a/B"} 2.0',
        'lenserve_batch_size_count{model="digits",version="1"} 2.0',
        "lenserve_ready 1.0",
    ):
        assert line in lines, done.stdout
