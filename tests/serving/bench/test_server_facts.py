"""CPU, batch sizes and stage times from two readings of metrics."""

from serving.bench.server_facts import Sample, facts_between


def _sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def test_workers_use_cores_too() -> None:
    """A supervisor shows its own CPU time and that of each worker."""
    worker = "lenserve_worker_process_cpu_seconds_total"
    before = {_sample("process_cpu_seconds_total"): 1.0, _sample(worker, worker="1"): 2.0}
    after = {
        _sample("process_cpu_seconds_total"): 1.5,
        _sample(worker, worker="1"): 5.0,
        _sample(worker, worker="2"): 0.5,
    }
    assert facts_between(before, after, model="digits", duration_s=2.0).cores == 2.0
