"""`lenserve batch`: what it prints, its exit code, and which version it takes.

`tests/system/test_batch_kills.py` runs it as a process.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from serving.bundle import Repository
from serving.cli import main
from tests.colours import Publish

ROOT = Path(__file__).parents[3]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Batch = Callable[..., Done]


@pytest.fixture
def batch(
    tmp_path: Path,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Batch:
    """Run `lenserve batch photos`, two green images, with one process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (9, 9), (0, 255, 0)).save(tmp_path / "photos" / name)
    places = ["--repository", str(repository.root), "--output", "out", "--processes", "1"]

    def run(*options: str, model: str = "colours", source: str = "photos") -> Done:
        code = main(["batch", source, "--model", model, *places, *options])
        return Done(code, *capsys.readouterr())

    return run


def test_a_job_is_done_once_and_keeps_its_version(batch: Batch, publish: Publish, tmp_path: Path) -> None:
    """A finished job is not repeated, a newer version does not change it, and naming that one is refused."""
    publish()
    first = batch()
    publish(rotate=1)
    again = batch("--json")
    other = batch(model="colours@2")

    assert first.code == 0, first.stderr
    assert first.stdout.startswith("classified 2 of 2 images with colours version 1 in ")
    summary = json.loads(again.stdout)
    assert (again.code, summary["version"], summary["resumed_images"]) == (0, 1, 2)
    assert (tmp_path / "out" / "part-00000.csv").read_text().count("green") == 4
    assert other.code == 2
    assert other.stderr.startswith(
        "lenserve batch: --output out holds a job with another version: it has 1, "
    )
    assert other.stderr.count("\n") == 1


def test_one_image_is_singular(batch: Batch, publish: Publish, tmp_path: Path) -> None:
    """In the result, and in the count of failures."""
    publish()
    (tmp_path / "photos" / "b.jpg").unlink()
    (tmp_path / "photos" / "a.png").write_bytes(b"")

    done = batch()

    assert done.stdout.startswith("classified 0 of 1 image with colours version 1 in ")
    assert done.stderr == "1 of 1 image failed (1 EMPTY_IMAGE); their rows say why\n"


def test_the_version_is_that_of_the_server(batch: Batch, publish: Publish, repository: Repository) -> None:
    """Without a revision: the alias stable, or else the newest."""
    publish()
    publish(rotate=1)
    repository.set_alias("colours", "stable", 1)

    done = batch("--json")

    assert json.loads(done.stdout)["version"] == 1


def test_some_failed_images_are_exit_code_3_and_are_counted_by_kind(
    batch: Batch, publish: Publish, tmp_path: Path
) -> None:
    """The job is complete: to run it again would not help, so it is not exit code 1."""
    publish()
    (tmp_path / "photos" / "c.jpg").touch()

    done = batch("--json", "--format", "parquet", "--top-k", "1", model="colours@1")

    assert done.code == 3
    assert done.stderr == "1 of 3 images failed (1 EMPTY_IMAGE); their rows say why\n"
    summary = json.loads(done.stdout)
    assert summary["errors"] == {"EMPTY_IMAGE": 1}
    assert (summary["classified"], summary["parts"]) == (2, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("shapes", "the repository has no model 'shapes'; known models: colours"),
        ("colours@9", "the repository has no version 9 of model 'colours'; its newest versions: 1"),
        (
            "colours@" + "9" * 5000,
            f"there is no version {'9' * 18}... of model 'colours': versions have at most 18 digits",
        ),
        ("colours@²", "model 'colours' has no alias '²'; known aliases: none"),
        ("colours@best", "model 'colours' has no alias 'best'; known aliases: none"),
    ],
)
def test_an_unknown_version_is_one_line(batch: Batch, publish: Publish, model: str, message: str) -> None:
    """Before any image is listed."""
    publish()
    assert batch(model=model, source="gone") == (1, "", f"lenserve batch: {message}\n")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--engine=ray", "--engine ray needs Ray: in a checkout, pip install '.[ray]'"),
        (
            "--format=parquet",
            "--format parquet needs pyarrow: in a checkout, pip install '.[batch]'",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    batch: Batch, publish: Publish, monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    """A server's installation has neither."""
    publish()
    for package in ("ray", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)  # Python's way to say that it is not installed
    assert batch(option) == (2, "", f"lenserve batch: {message}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_how_to_continue(
    repository: Repository, publish: Publish, tmp_path: Path, *, number: signal.Signals, code: int
) -> None:
    """One line instead of a traceback or nothing; the parts that were written stay."""
    publish()
    (tmp_path / "a.png").touch()
    (tmp_path / "list.txt").write_text("a.png\n" * 200_000)
    places = ["--repository", str(repository.root), "--output", str(tmp_path / "out")]
    # Shells let programs in the background ignore SIGINT, also these tests.
    python = ["env", "--default-signal=INT", sys.executable]
    command = [*python, "-m", "serving.cli", "batch", str(tmp_path / "list.txt"), "--model", "colours"]
    process = subprocess.Popen(
        [*command, *places, "--part-images", "100"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "out").glob("part-*")):
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    assert (process.returncode, said) == (code, "stopped: run the same command again to continue\n")
    assert (tmp_path / "out" / "job.json").exists()
