"""`lenserve classify` where the server is not there yet, or the address and numbers are wrong."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from serving.bundle import Repository
from serving.cli import main
from serving.cli_classify import RetryNotice
from serving.client.messages import CallFailed
from tests.colours import Publish
from tests.servers import StartServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """An image file."""
    Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--server", "http://127.0.0.1:9"], 2, "server 'http://127.0.0.1:9' is a URL: write 127.0.0.1:9"),
        (["--server", "127.0.0.1:70000"], 2, "has the port '70000': write a number from 1 to 65535"),
        (
            ["--model", "m@9223372036854775808"],
            1,
            "version 9223372036854775808 is out of range: the highest is",
        ),
        (["--top-k", "2147483648"], 2, "--top-k: must be at most 2147483647, got 2147483648"),
        (["--timeout-s", "inf"], 2, "--timeout-s: must be at most 86400"),
        (["--token", "a\nb"], 2, "the token has characters that no header can carry"),
        (["--tls-server-name", "a"], 2, "tls_server_name 'a' needs TLS: set tls_ca_file with it"),
        (["--wait", "--wait-timeout-s", "0.2"], 1, "UNAVAILABLE: "),
    ],
)
def test_a_wrong_value_is_one_line(
    red: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, line: str
) -> None:
    """Without a call, a traceback or the wording of a library."""
    defaults = ["--server", "127.0.0.1:9", "--model", "m", "--timeout-s", "5"]
    assert main(["classify", *defaults, *options, str(red)]) == code
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("lenserve classify: ")
    assert line in errors


def test_wait_begins_before_the_server(
    publish: Publish, start_server: StartServer, red: Path, free_ports: tuple[int, int]
) -> None:
    """`lenserve classify --wait` in a script that has just started the server."""
    publish()
    address = f"127.0.0.1:{free_ports[0]}"
    arguments = ["classify", "--wait", "--server", address, "--model", "colours", str(red)]
    with subprocess.Popen(
        [sys.executable, "-m", "serving.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        start_server("--grpc-port", str(free_ports[0]))
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.split()[4] == "red"


def test_a_long_outage_is_told_once() -> None:
    """Not the short pauses of a busy server."""
    said = io.StringIO()
    gone = CallFailed("UNAVAILABLE", "gone [v1]")

    patient = RetryNotice("a:1", Console(file=said), silence_s=60)
    hasty = RetryNotice("a:1", Console(file=said), silence_s=0)
    for notice in (patient, hasty, hasty):
        notice(gone, 0.1)

    assert said.getvalue() == "waiting for a:1, trying again: UNAVAILABLE: gone [v1]\n"


def test_wait_says_early_what_to_do(
    publish: Publish, start_server: StartServer, repository: Repository, red: Path
) -> None:
    """A candidate waits for its promotion. The line on stderr is there long before --wait-timeout-s."""
    publish()
    publish()
    repository.set_alias("colours", "stable", 1)
    server = start_server("--poll-interval-s", "0.05")
    arguments = ["classify", "--wait", "--server", server.grpc, "--model", "colours@2", str(red)]
    with subprocess.Popen(
        [sys.executable, "-m", "serving.cli", *arguments],
        env={**os.environ, "COLUMNS": "400", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        repository.set_alias("colours", "stable", 2)
        output, _ = process.communicate(timeout=60)
    assert line == (
        f"waiting for {server.grpc}, trying again: UNAVAILABLE: model 'colours@2' is not ready: version 2 of "
        "model 'colours' is not served; served versions: 1; if it is published, promote it "
        "(`lenserve models promote colours@2`), or give it an alias\n"
    )
    assert process.returncode == 0
    assert output.splitlines()[0] == f"{red}  (colours version 2)"
