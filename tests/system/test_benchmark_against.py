"""`make bench --against CHECKOUT` (tests/benchmarks/against.py): statistics and refusals."""

import random
import statistics
from math import comb
from pathlib import Path

import pytest

from tests.benchmarks.against import Comparison, Workload, compare, median_interval, workloads

WORKLOAD = Workload((1,), "lenserve", 16)


@pytest.mark.parametrize(("count", "ranks"), [(6, (1, 6)), (15, (4, 12)), (20, (6, 15)), (30, (10, 21))])
def test_the_interval_has_the_ranks_of_published_tables(count: int, ranks: tuple[int, int]) -> None:
    """Ranks of the 95 % interval of a median: Conover, Practical Nonparametric Statistics, table A3."""
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)  # noqa: S311 - an order, no secret
    assert list(median_interval(values)) == list(ranks)
    below = sum(comb(count, k) for k in range(ranks[0])) / 2**count
    assert 1 - 2 * below >= 0.95


def test_the_interval_covers_the_true_median_as_often_as_stated() -> None:
    """In 2,000 samples of 15 skewed values the interval misses the true median in about 3.5 %."""
    generator = random.Random(1)  # noqa: S311 - samples, no secret
    missed = 0
    for _ in range(2000):
        low, high = median_interval([generator.lognormvariate(0, 0.5) for _ in range(15)])
        missed += not low <= 1 <= high
    assert 0.02 < missed / 2000 < 0.05


def test_too_few_values_have_no_interval() -> None:
    """Five values cannot give 95 %: both ends together are missed in 1 of 16 cases."""
    with pytest.raises(ValueError, match="5 values are too few for a 95% interval"):
        median_interval([1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("middle", "spread", "verdict"),
    [(1.0, 0.01, "at most 1.05"), (1.2, 0.01, "**above 1.05**"), (1.05, 0.05, "not resolved")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(middle: float, spread: float, verdict: str) -> None:
    """An interval that crosses the limit decides nothing."""
    ratios = tuple(middle + spread * (number - 7) / 7 for number in range(15))
    comparison = Comparison(WORKLOAD, ratios)
    assert comparison.median == pytest.approx(statistics.median(ratios))
    assert comparison.verdict == verdict


def test_rows_that_share_a_workload_measure_it_once() -> None:
    """Rows 1 and 2 ask the same server the same, and row 4 stands twice in the table."""
    found = workloads([1, 2, 4, 5, 9, 11])
    assert [(each.rows, each.name) for each in found] == [
        ((1, 2), "lenserve, 16 in flight"),
        ((4,), "lenserve, 1 in flight"),
        ((5,), "lenserve, 64 in flight"),
        ((9,), "lenserve stream, 1 in flight"),
        ((11,), "start"),
    ]


def test_a_row_without_cpu_per_request_is_refused_by_number() -> None:
    """Row 12 measures an overload."""
    with pytest.raises(SystemExit, match="row 12 has none"):
        workloads([1, 11, 12])


def test_a_folder_without_this_projects_code_is_refused(tmp_path: Path) -> None:
    """Before any server starts."""
    with pytest.raises(SystemExit, match="is not a working tree of this project"):
        compare(tmp_path, [1], rounds=15, window_s=0.1, seed=1)


def test_fewer_than_fifteen_pairs_are_refused() -> None:
    """A median of few pairs says too little about five per cent."""
    with pytest.raises(SystemExit, match="--rounds 3: a comparison needs at least 15"):
        compare(Path(), [1], rounds=3, window_s=0.1, seed=1)
