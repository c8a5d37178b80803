"""`lenserve batch` in a small form of `python -m tests.system.batch_kills`: killed, resumed, compared."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.system.batch_kills import check


@pytest.mark.parametrize(
    ("engine", "kind", "kills"),
    [
        ("local", "csv", 1),
        pytest.param(
            "ray",
            "parquet",
            1,
            marks=pytest.mark.skipif(
                find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
            ),
        ),
    ],
)
def test_a_killed_batch_is_resumed_and_equals_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, kind: str, kills: int
) -> None:
    """Every image has one row, in order; labels, probabilities and errors are the server's."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    line = check(tmp_path, images=303, kills=kills, engine=engine, kind=kind, part_images=10)
    assert "complete, no row twice, 3 errors" in line
