"""The small form of `python -m tests.chaos.refresh`: two versions under load."""

from pathlib import Path

from tests.chaos.refresh import swaps, table


def test_new_versions_under_load_cost_no_call_and_no_wrong_answer(tmp_path: Path) -> None:
    """Each answer is that of the version that it names. How late calls are is not measured here."""
    result = swaps(tmp_path, "h2", 1, change="version", changes=2, calm_s=0.2, layers=1, calls_per_s=50)
    assert result.calls > 0
    assert (result.failed, result.wrong) == ({}, 0)
    assert len(table([result]).splitlines()) == 3
