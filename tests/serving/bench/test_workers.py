"""Worker processes begin together, give back what they counted, and never outlive their work."""

import multiprocessing

import pytest

from serving.bench.plan import ClosedLoop
from serving.bench.target import Target
from serving.bench.workers import WorkerLost, start_workers

NOBODY = Target("127.0.0.1:9", (b"",), timeout_s=1.0)  # RFC 863: nobody listens there


def test_every_worker_gives_its_tally_and_ends() -> None:
    """Two workers, three callers; nobody answers, which is counted as such."""
    with start_workers(2, NOBODY) as workers:
        workers.start(ClosedLoop(3), warm_up_s=0.0, window_s=0.2)
        results = workers.results(lambda: None)
        assert len(multiprocessing.active_children()) == 2
    assert [set(tally.outcomes) for tally in results] == [{"UNAVAILABLE"}] * 2
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_and_takes_the_others_with_it() -> None:
    """No waiting for ever for an answer that cannot come."""
    with start_workers(2, NOBODY) as workers:
        workers.start(ClosedLoop(2), warm_up_s=0.0, window_s=30.0)
        multiprocessing.active_children()[0].kill()
        with pytest.raises(WorkerLost, match="died during the measurement"):
            workers.results(lambda: None)
    assert multiprocessing.active_children() == []
