"""Worker processes start together, return their results, and do not outlive their work."""

import multiprocessing

import pytest

from serving.bench.plan import ClosedLoop
from serving.bench.target import Target
from serving.bench.workers import WorkerLost, start_workers

NOBODY = Target("127.0.0.1:9", (b"",), timeout_s=1.0)  # RFC 863: nobody listens there


def test_every_worker_returns_its_result_and_ends() -> None:
    """Two workers, three callers; without a server every call counts as an error."""
    with start_workers(2, NOBODY) as workers:
        workers.start(ClosedLoop(3), warm_up_s=0.0, window_s=0.2)
        results = workers.results(lambda: None)
        assert len(multiprocessing.active_children()) == 2
    assert [set(tally.outcomes) for tally in results] == [{"UNAVAILABLE"}] * 2
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_and_takes_the_others_with_it() -> None:
    """The parent does not wait forever."""
    with start_workers(2, NOBODY) as workers:
        workers.start(ClosedLoop(2), warm_up_s=0.0, window_s=30.0)
        multiprocessing.active_children()[0].kill()
        with pytest.raises(WorkerLost, match="died during the measurement"):
            workers.results(lambda: None)
    assert multiprocessing.active_children() == []
