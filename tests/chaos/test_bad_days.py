"""The small form of `python -m tests.chaos.bad_days`: two faults that must cost nothing."""

from pathlib import Path

import pytest

from tests.chaos.bad_days import have
from tests.chaos.faults import all_faults


@pytest.mark.parametrize("name", ["repository-gone", "log-reader-gone"])
async def test_a_fault_costs_no_call(name: str, tmp_path: Path) -> None:
    """Every call is answered, and both probes stay 200; a metric shows it."""
    day = await have(all_faults()[name], tmp_path, seconds=1.5, calm_s=0.2)
    assert not day.lost_plain
    assert not day.lost_retrying
    assert len(day.plain) > 10
    assert (day.says("/livez"), day.says("/readyz")) == ("200", "200")
    assert day.highest > sum(day.before.values())
