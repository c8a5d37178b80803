"""The small form of `python -m tests.chaos.overload`: one kind of work over one transport, for a moment."""

from pathlib import Path

from tests.chaos.overload import measure, photographs, table

SECONDS = 0.4


def test_a_server_that_is_asked_for_four_times_what_it_can_do_answers_or_refuses(tmp_path: Path) -> None:
    """Every call ends in one of the ways that clients expect. How many are answered is not measured here."""
    (result,) = measure(photographs(), tmp_path, "h2", seconds=SECONDS, loads=[(4, 1.0)])
    assert result.codes["OK"] > 0
    assert not any("failed" in miss for miss in result.misses())
    assert 0 < result.call_cpu_us < 1e5
    assert len(table([result]).splitlines()) == 3
