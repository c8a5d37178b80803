"""The command for a GPU machine is rehearsed on a CPU: on the day only CUDA itself can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.rows import Row, Rows, markdown, read_rows

ROOT = Path(__file__).parents[2]
COMMAND = str(ROOT / "tests/gpu/run.sh")


def test_the_command_passes_on_a_cpu_from_end_to_end(tmp_path: Path) -> None:
    """Every part finds something and nothing wrong; JSON, table and last line agree.

    The parts have limits of their own for a GPU, whose time is short; a slow CPU may take longer.
    """
    done = run(tmp_path, "--limit-s", "300")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    whole = json.loads((tmp_path / "results.json").read_text())
    assert list(whole["parts"]) == ["facts", "tests", "serving_speed", "training_speed", "faults"]
    assert all(whole["parts"].values())
    assert whole["failed"] == {}
    table = (tmp_path / "results.md").read_text()
    for part, rows in whole["parts"].items():
        assert all(f"| {part} | {row['what']} |" in table for row in rows)
    (tests,) = whole["parts"]["tests"]
    assert len(tests["values"]["passed"]) >= 15
    assert done.stdout.splitlines()[-1].startswith("passed: facts, tests, serving_speed, ")


def test_a_part_that_runs_late_or_fails_ends_no_other(tmp_path: Path) -> None:
    """What it had found is kept, the last line names each with its reason, and the exit code is 1."""
    done = run(tmp_path, "--parts", "facts,faults", "--limit-s", "0.5")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last == "FAILED: facts: timed out after 0.5 s; faults: timed out after 0.5 s"
    assert "Failed: facts: timed out after 0.5 s" in (tmp_path / "results.md").read_text()


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_missing_cuda_is_a_failure(tmp_path: Path) -> None:
    """Nothing is measured on a CPU in its place."""
    done = run(tmp_path, "--parts", "facts", device="cuda")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("FAILED: facts: card (nvidia-smi failed: ")
    assert "an ONNX Runtime session (DeviceUnavailable: device cuda was requested, but " in last


def test_a_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """With those that do."""
    done = run(tmp_path, "--parts", "facts,speed")
    assert done.returncode == 2
    assert "there is no part 'speed'; parts are facts, tests," in done.stderr


def test_rows_are_on_disk_as_soon_as_they_are_known(tmp_path: Path) -> None:
    """Each addition is the whole file; a row that is wrong stands out in the table."""
    rows = Rows(tmp_path / "part.json")
    rows.add("first", "1 image/s", rate=1.0)
    assert read_rows(tmp_path / "part.json") == [Row("first", "1 image/s", {"rate": 1.0})]
    rows.add("second", "a|b", wrong="expected c")
    assert rows.wrong == 1
    table = markdown({"part": read_rows(tmp_path / "part.json")}, "By hand.")
    assert table.splitlines()[2:] == [
        "| part | first | 1 image/s |",
        "| part | second | a\\|b **wrong: expected c** |",
        "",
        "By hand.",
    ]


def run(results: Path, *options: str, device: str = "cpu") -> subprocess.CompletedProcess[str]:
    """The real command, with this Python."""
    return subprocess.run(
        [COMMAND, "--device", device, "--results", str(results), *options],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )


def test_nothing_of_a_part_that_ran_late_is_left(tmp_path: Path) -> None:
    """A server that it started, in a session of its own, ends with it."""
    before = servers()
    done = run(tmp_path, "--parts", "faults", "--limit-s", "4.5")
    assert "timed out after 4.5 s" in done.stdout
    assert servers() == before


def servers() -> set[str]:
    """Process ids of servers on this machine that serve this part's repository."""
    listed = subprocess.run(
        ["pgrep", "-f", "serving.cli serve .*faults-"], capture_output=True, text=True, check=False
    )
    return set(listed.stdout.split())
