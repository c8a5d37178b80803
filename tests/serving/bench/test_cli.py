"""`lenserve bench` as a process against a real server: its output and its exit codes."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from tests.colours import Publish
from tests.servers import ServerProcess, StartServer

ROOT = Path(__file__).parents[3]
FAST = ("--seconds", "0.3", "--warm-up-seconds", "0.1")

Arguments = Callable[..., list[str]]


@pytest.fixture
def server(publish: Publish, start_server: StartServer) -> ServerProcess:
    """A server process with one model."""
    publish()
    return start_server()


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "serving.cli", "bench", *map(str, arguments)]


def _environment() -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("LENSERVE_")}
    return {**plain, "COLUMNS": "200", "PYTHONPATH": str(ROOT)}


def _bench(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        env={**_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_sweep_ends_in_one_json_object(server: ServerProcess, tmp_path: Path) -> None:
    """Closed and open loops, two clients, server metrics, advice and a picture."""
    picture = tmp_path / "knee.svg"
    done = _bench(
        *("--server", server.grpc, "--model", "colours", *FAST, "--json", "--processes", 2),
        *("--concurrency", "1,4", "--concurrency", 8, "--rate", 50, "--p99-ms", 5000),
        *("--metrics-url", f"http://{server.http}/metrics", "--picture", picture),
        http_proxy="http://127.0.0.1:9",  # for other machines
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["version"], report["server"]) == ("colours", 1, server.grpc)
    points = report["points"]
    assert [point["concurrency"] for point in points] == [1, 4, 8, None]
    assert [point["mode"] for point in points] == ["closed"] * 3 + ["open"]
    for point in points:
        assert point["errors"] == {}
        assert 0 < point["p50_ms"] <= point["p90_ms"] <= point["p99_ms"] <= point["p99.9_ms"]
        assert point["server"]["batch_images"] >= 1
        assert point["server"]["cores"] > 0
        assert set(point["server"]["stages_s"]) >= {"queue", "infer"}
    assert points[3]["requests"] < 50  # 15 are due in the window
    assert report["knee"] in points
    assert any("p99 stays within 5000 ms up to" in sentence for sentence in report["advice"])
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")  # noqa: S314 - our own


def test_the_text_output_is_a_table_and_advice(server: ServerProcess, tmp_path: Path) -> None:
    """One row per load, the knee marked; a photograph is sent as a file."""
    photograph = tmp_path / "red.png"
    Image.new("RGB", (20, 20), (255, 0, 0)).save(photograph)
    loads = ("--concurrency", "1,2,3")
    done = _bench("--server", server.grpc, "--model", "colours", *FAST, *loads, "--image", photograph)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [[f"{n}", "in", "flight"] for n in (1, 2, 3)]
    assert done.stdout.count("<- knee") == 1
    assert "The knee is at" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--model", "nope"), 1, "NOT_FOUND: there is no model 'nope'"),
        (("--model", "colours", "--server", "127.0.0.1:9"), 1, "127.0.0.1:9 does not answer"),
        (("--model", "colours", "--server", "http://a"), 2, "is a URL: write a:8001"),
        (("--model", "x", "--wait", "--wait-timeout-s", "0.1"), 1, "UNAVAILABLE: model 'x' is not ready"),
        (("--model", "colours", "--image", "/nope.png"), 1, "/nope.png cannot be read: No such file"),
        (("--model", "colours", "--picture", "/nope/x.svg"), 2, "/nope is not a directory"),
        (("--model", "colours", "--metrics-url", "http://127.0.0.1:9/"), 2, "cannot be read"),
        (
            ("--model", "colours", "--metrics-url", "file:///etc/hosts"),
            2,
            "is not an http:// or https:// URL",
        ),
        (("--model", "colours", "--concurrency", "0"), 2, "--concurrency: must be at least 1, got 0"),
        ((), 2, "--model is required"),
    ],
)
def test_an_error_is_one_clear_line(
    server: ServerProcess, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """No traceback, nothing on stdout, and the right exit code."""
    address = () if "--server" in arguments else ("--server", server.grpc)
    done = _bench(*address, *FAST, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_clients_end_with_the_command(server: ServerProcess, number: signal.Signals, code: int) -> None:
    """Ctrl-C reaches the whole group: exit code 130 and no traceback. A kill reaches only the command."""
    arguments = _command("--server", server.grpc, "--model", "colours", "--seconds", 600, "--processes", 2)
    # Where the tests themselves run in the background Ctrl-C is ignored, and every child inherits that.
    obey_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        arguments,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=obey_ctrl_c,  # noqa: PLW1509 - the tests have no other thread here
    ) as bench:
        while len(clients := _clients_of(bench.pid)) < 2:
            assert bench.poll() is None
        ends = [os.pidfd_open(pid) for pid in clients]
        (os.killpg if number == signal.SIGINT else os.kill)(bench.pid, number)
        stdout, stderr = bench.communicate(timeout=30)
    assert (bench.returncode, stdout) == (code, "")
    if number == signal.SIGINT:  # a client that is being started when the command is killed may complain
        assert "Traceback" not in stderr
    for end in ends:
        assert select.select([end], [], [], 20)[0], "a client outlives the command"
        os.close(end)


def _clients_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
