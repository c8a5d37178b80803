"""Whether a process works or waits."""

import threading
from collections.abc import Sequence
from itertools import accumulate

import pytest

from serving.models.progress import Progress, Usage, usage_of_process


def _looks(steps: Sequence[tuple[float, float, int]]) -> list[int]:
    """Look once a step, each of which has the time that passes, the CPU time and the blocks that are read."""
    usages = accumulate(
        steps,
        lambda last, step: Usage(last.at_s + step[0], last.cpu_s + step[1], last.blocks_read + step[2]),
        initial=Usage(0.0, 0.0, 0),
    )
    progress = Progress(lambda: next(usages))
    return [progress.idle_looks() for _ in steps]


@pytest.mark.parametrize(
    ("steps", "counts"),
    [
        pytest.param([(1.0, 0.005, 0)] * 3, [1, 2, 3], id="waits"),
        pytest.param([(1.0, 0.5, 0)] * 3, [0, 0, 0], id="computes"),
        pytest.param([(1.0, 0.0, 8)] * 3, [0, 0, 0], id="reads"),
        pytest.param([(1.0, 0.0, 0)] * 2 + [(1.0, 0.5, 0), (1.0, 0.0, 0)], [1, 2, 0, 1], id="waits again"),
        pytest.param([(60.0, 0.0, 0)], [1], id="paused: one look, however long it took"),
    ],
)
def test_looks_at_which_nothing_was_done_are_counted(
    steps: Sequence[tuple[float, float, int]], counts: list[int]
) -> None:
    """In a row."""
    assert _looks(steps) == counts


def test_a_thread_that_computes_is_seen() -> None:
    """The kernel's own numbers."""
    progress, done = Progress(), threading.Event()

    def compute() -> None:
        until_s = usage_of_process().cpu_s + 0.1
        while usage_of_process().cpu_s < until_s:
            pass
        done.set()

    threading.Thread(target=compute).start()
    assert done.wait(timeout=30)
    assert progress.idle_looks() == 0
